/* Avro's integers, as what reads records needs them. */

#ifndef CODEC_VARINT_H
#define CODEC_VARINT_H

#include "codec.h"

/* Returns the end of the varint at `at`, and its value; NULL if it is truncated or longer than 9 bytes. */
static inline const char *take_long(const char *at, const char *end, int64_t *value)
{
    uint64_t raw = 0;
    for (int shift = 0; shift < 63 && at < end; shift += 7) {
        unsigned char byte = (unsigned char)*at++;
        raw |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) {
            *value = (int64_t)(raw >> 1) ^ -(int64_t)(raw & 1);
            return at;
        }
    }
    return NULL;
}

#endif
