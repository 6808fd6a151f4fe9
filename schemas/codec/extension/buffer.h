/* A growing buffer of bytes. Its functions are small and called for every value, hence inline. */

#ifndef CODEC_BUFFER_H
#define CODEC_BUFFER_H

#include "codec.h"

/* A growing buffer. All writes go through `reserve`, the only bounds check. */
typedef struct {
    char *data;
    size_t size, capacity;
} Buffer;

static inline Outcome reserve(Buffer *out, size_t more)
{
    if (more <= out->capacity - out->size)
        return DONE;
    if (more > (size_t)PY_SSIZE_T_MAX / 4 || out->size > (size_t)PY_SSIZE_T_MAX / 4)
        return NO_MEMORY;
    size_t capacity = (out->size + more) * 2;
    if (capacity < 4096)
        capacity = 4096;
    char *data = PyMem_RawRealloc(out->data, capacity);
    if (data == NULL)
        return NO_MEMORY;
    out->data = data;
    out->capacity = capacity;
    return DONE;
}

static inline void release(Buffer *out)
{
    PyMem_RawFree(out->data);
    memset(out, 0, sizeof *out);
}

static inline Outcome put(Buffer *out, const char *bytes, size_t size)
{
    if (reserve(out, size) != DONE)
        return NO_MEMORY;
    if (size > 0) /* an empty buffer has no data */
        memcpy(out->data + out->size, bytes, size);
    out->size += size;
    return DONE;
}

static inline Outcome put_byte(Buffer *out, char byte)
{
    return put(out, &byte, 1);
}

static inline Outcome put_long(Buffer *out, int64_t number)
{
    uint64_t bits = ((uint64_t)number << 1) ^ (number < 0 ? UINT64_MAX : 0);
    if (reserve(out, 10) != DONE)
        return NO_MEMORY;
    char *to = out->data + out->size;
    while (bits >= 0x80) {
        *to++ = (char)((bits & 0x7F) | 0x80);
        bits >>= 7;
    }
    *to++ = (char)bits;
    out->size = (size_t)(to - out->data);
    return DONE;
}

static inline Outcome put_string(Buffer *out, const char *text, size_t size)
{
    return put_long(out, (int64_t)size) == DONE ? put(out, text, size) : NO_MEMORY;
}

static inline PyObject *as_bytes(const char *data, size_t size)
{
    return PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
}

static inline Outcome put_object(Buffer *out, PyObject *bytes)
{
    return put(out, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
}

#endif
