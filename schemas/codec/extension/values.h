/* Columns, and the encoding of their values. */

#ifndef CODEC_VALUES_H
#define CODEC_VALUES_H

#include "buffer.h"

/* In the order of schemas.column_types.Kind, which schemas/codec/implementation.py numbers. */
typedef enum {
    KIND_BOOLEAN, KIND_INT, KIND_LONG, KIND_FLOAT, KIND_DOUBLE, KIND_TEXT,
    KIND_UUID, KIND_DATE, KIND_TIME, KIND_TIMESTAMP, KIND_TIMESTAMPTZ, KIND_DECIMAL, KIND_COUNT
} Kind;

typedef struct {
    Kind kind;
    int64_t low, high;    /* of integers, inclusive */
    int precision, scale; /* of decimals */
    int partial, toastable;
    int key, lacking;
} Column;

/* Writes the cell of a value with its branch; needs the GIL if the column is a float or a double. APART only if the column
 * is partial.
 *
 * If it is ODD, a part of the value may be written: the caller discards the row. */
Outcome codec_put_value(Buffer *out, const Column *column, const char *text, size_t size);

#endif
