/* A row of the stream, read from its message: the same values as producers.stream.pgoutput_fields.columns, without a list.
 *
 * It is a sequence that creates the values on access. The codec reads the message itself. */

#ifndef HEADRACE_CODEC_ROW_H
#define HEADRACE_CODEC_ROW_H

#include "values.h"

typedef struct {
    PyObject_HEAD
    PyObject *payload; /* bytes, with `width` valid columns from `start` on */
    Py_ssize_t start, end, width;
} Row;

static PyTypeObject RowType;

/* schemas.events.UNCHANGED; set when the module is created, and never released. */
static PyObject *UNCHANGED;

typedef enum { VALUE_NULL, VALUE_UNCHANGED, VALUE_TEXT } Form;

typedef struct {
    Form form;
    const char *text;
    size_t size;
} Field;

/* Reads the column at `at`; returns the start of the next one, 0 if the codec does not handle it. */
static Py_ssize_t read_column(const char *data, Py_ssize_t size, Py_ssize_t at, Field *field)
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

static PyObject *field_value(const Field *field)
{
    if (field->form == VALUE_TEXT)
        return PyBytes_FromStringAndSize(field->text, (Py_ssize_t)field->size);
    PyObject *value = field->form == VALUE_NULL ? Py_None : UNCHANGED;
    Py_INCREF(value);
    return value;
}

/* tuple_row(data, pos, count) -> (row, its end), or None to leave it to the Python code. */
static PyObject *tuple_row(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || !PyBytes_CheckExact(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "tuple_row takes bytes and two numbers");
        return NULL;
    }
    Py_ssize_t at = PyLong_AsSsize_t(arguments[1]), width = PyLong_AsSsize_t(arguments[2]), start = at;
    if ((at == -1 || width == -1) && PyErr_Occurred())
        return NULL;
    if (at < 0 || width < 0)
        Py_RETURN_NONE;
    const char *data = PyBytes_AS_STRING(arguments[0]);
    Py_ssize_t size = PyBytes_GET_SIZE(arguments[0]);
    Field field;
    for (Py_ssize_t index = 0; index < width; index++) {
        at = read_column(data, size, at, &field);
        if (at == 0)
            Py_RETURN_NONE;
    }
    Row *row = PyObject_New(Row, &RowType);
    if (row == NULL)
        return NULL;
    Py_INCREF(arguments[0]);
    row->payload = arguments[0];
    row->start = start;
    row->end = at;
    row->width = width;
    return Py_BuildValue("(Nn)", row, at);
}

static void row_dealloc(Row *row)
{
    Py_XDECREF(row->payload);
    PyObject_Free(row);
}

static Py_ssize_t row_length(Row *row)
{
    return row->width;
}

static PyObject *row_item(Row *row, Py_ssize_t index)
{
    if (index < 0 || index >= row->width) {
        PyErr_SetString(PyExc_IndexError, "no such column");
        return NULL;
    }
    Field field;
    Py_ssize_t at = row->start;
    for (Py_ssize_t each = 0; each <= index; each++)
        at = read_column(PyBytes_AS_STRING(row->payload), row->end, at, &field);
    return field_value(&field);
}

static PyObject *row_list(Row *row)
{
    PyObject *list = PyList_New(row->width);
    Py_ssize_t at = row->start;
    for (Py_ssize_t index = 0; list != NULL && index < row->width; index++) {
        Field field;
        at = read_column(PyBytes_AS_STRING(row->payload), row->end, at, &field);
        PyObject *value = field_value(&field);
        if (value == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, index, value);
    }
    return list;
}

static PyObject *row_iterate(Row *row)
{
    PyObject *list = row_list(row);
    if (list == NULL)
        return NULL;
    PyObject *iterator = PyObject_GetIter(list);
    Py_DECREF(list);
    return iterator;
}

/* Equal to the Python code's result, a list of the same values. */
static PyObject *row_compare(PyObject *left, PyObject *right, int operation)
{
    if (operation != Py_EQ && operation != Py_NE)
        Py_RETURN_NOTIMPLEMENTED;
    PyObject *result = NULL, *mine = row_list((Row *)left);
    PyObject *other = right;
    if (Py_TYPE(right) == &RowType)
        other = row_list((Row *)right);
    else
        Py_INCREF(other);
    if (mine != NULL && other != NULL)
        result = PyObject_RichCompare(mine, other, operation);
    Py_XDECREF(mine);
    Py_XDECREF(other);
    return result;
}

static PyObject *row_repr(Row *row)
{
    PyObject *list = row_list(row), *text = list == NULL ? NULL : PyObject_Repr(list);
    Py_XDECREF(list);
    return text;
}

static PySequenceMethods row_sequence = {
    .sq_length = (lenfunc)row_length,
    .sq_item = (ssizeargfunc)row_item,
};

static PyTypeObject RowType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "schemas.codec._compiled.Row",
    .tp_doc = "A row of the stream: a sequence of texts, None and UNCHANGED, read from its message when asked for.",
    .tp_basicsize = sizeof(Row),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = (destructor)row_dealloc,
    .tp_as_sequence = &row_sequence,
    .tp_iter = (getiterfunc)row_iterate,
    .tp_richcompare = row_compare,
    .tp_hash = PyObject_HashNotImplemented,
    .tp_repr = (reprfunc)row_repr,
};

#endif
