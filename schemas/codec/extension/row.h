/* A row of the stream, and the fields of a row. */

#ifndef CODEC_ROW_H
#define CODEC_ROW_H

#include "codec.h"

typedef struct {
    PyObject_HEAD
    PyObject *payload; /* bytes, with `width` valid columns from `start` on */
    Py_ssize_t start, end, width;
} Row;

typedef enum { VALUE_NULL, VALUE_UNCHANGED, VALUE_TEXT } Form;

typedef struct {
    Form form;
    int apart; /* whether its text belongs into `exact`; set by the encoding of its row */
    const char *text;
    size_t size;
} Field;

/* Reads the column at `at`; returns the start of the next one, 0 if the codec does not handle it. */
static inline Py_ssize_t read_column(const char *data, Py_ssize_t size, Py_ssize_t at, Field *field)
{
    if (at >= size)
        return 0;
    switch (data[at]) {
    case 'n':
        field->form = VALUE_NULL;
        return at + 1;
    case 'u':
        field->form = VALUE_UNCHANGED;
        return at + 1;
    case 't': {
        if (size - at < 5)
            return 0;
        const unsigned char *byte = (const unsigned char *)data + at + 1;
        uint32_t length = (uint32_t)byte[0] << 24 | (uint32_t)byte[1] << 16 | (uint32_t)byte[2] << 8 | byte[3];
        if (length > (size_t)(size - at - 5))
            return 0;
        field->form = VALUE_TEXT;
        field->text = data + at + 5;
        field->size = length;
        return at + 5 + (Py_ssize_t)length;
    }
    default:
        return 0; /* binary, which has its own class, or not a tuple */
    }
}

#endif
