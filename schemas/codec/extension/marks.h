/* Marks, by which a table's rows and a topic's records are compared; see consumers/compare/marks.py. */

#ifndef CODEC_MARKS_H
#define CODEC_MARKS_H

#include "buffer.h"

/* `row` is the hash of a row, or one of those below; `place` says where it was read. */
typedef struct {
    uint64_t key, row, place;
} Mark;

#define MARK_GONE 0 /* no row */
#define MARK_ODD 1  /* a row that only reading it can compare */
#define MARK_FIRST 2

#define CODEC_SECRET_BYTES 16

/* The mark of a row as it was encoded, and of its key without the header. */
Mark codec_mark(const unsigned char *secret, const char *key, size_t key_size, const char *row, size_t row_size,
                uint64_t place);

#endif
