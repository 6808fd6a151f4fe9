/* A row of the stream, read from its message: the same values as producers.stream.pgoutput_fields.columns, without a list.
 *
 * It is a sequence that creates the values on access. The codec reads the message itself. */

#include "row.h"

static PyObject *unchanged_of(const Row *row)
{
    const CodecState *state = PyType_GetModuleState(Py_TYPE(row));
    return state->unchanged;
}

static PyObject *field_value(const Row *row, const Field *field)
{
    if (field->form == VALUE_TEXT)
        return PyBytes_FromStringAndSize(field->text, (Py_ssize_t)field->size);
    PyObject *value = field->form == VALUE_NULL ? Py_None : unchanged_of(row);
    Py_INCREF(value);
    return value;
}

/* tuple_row(data, pos, count) -> (row, its end), or None to leave it to the Python code. */
PyObject *codec_tuple_row(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    const CodecState *state = PyModule_GetState(module);
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
    Row *row = PyObject_New(Row, state->row_type);
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
    PyTypeObject *type = Py_TYPE(row);
    Py_XDECREF(row->payload);
    PyObject_Free(row);
    Py_DECREF(type);
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
    Field field = {VALUE_NULL, 0, NULL, 0};
    Py_ssize_t at = row->start;
    for (Py_ssize_t each = 0; each <= index; each++)
        at = read_column(PyBytes_AS_STRING(row->payload), row->end, at, &field);
    return field_value(row, &field);
}

static PyObject *row_list(Row *row)
{
    PyObject *list = PyList_New(row->width);
    Py_ssize_t at = row->start;
    for (Py_ssize_t index = 0; list != NULL && index < row->width; index++) {
        Field field = {VALUE_NULL, 0, NULL, 0};
        at = read_column(PyBytes_AS_STRING(row->payload), row->end, at, &field);
        PyObject *value = field_value(row, &field);
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
    if (Py_TYPE(right) == Py_TYPE(left))
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

static PyType_Slot row_slots[] = {
    {Py_tp_doc, "A row of the stream: a sequence of texts, None and UNCHANGED, read from its message when asked for."},
    {Py_tp_dealloc, row_dealloc},
    {Py_sq_length, row_length},
    {Py_sq_item, row_item},
    {Py_tp_iter, row_iterate},
    {Py_tp_richcompare, row_compare},
    {Py_tp_hash, PyObject_HashNotImplemented},
    {Py_tp_repr, row_repr},
    {0, NULL},
};

/* Without the garbage collector: a row refers only to bytes, and to its type, which knows no rows. */
PyType_Spec codec_row_spec = {
    .name = "schemas.codec._compiled.Row",
    .basicsize = sizeof(Row),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = row_slots,
};
