/* Reads events of records in C, as schemas/codec/projection.py does in Python, for plainly well-formed records.
 *
 * For any other record it returns None and leaves it to the Python reader: errors are decided in one place. */

#include "varint.h"

/* The type of a column's branch 1; branch 0 is null. In the order of _SHAPES in schemas/codec/projection.py. */
typedef enum { CELL_BOOLEAN, CELL_LONG, CELL_FOUR, CELL_EIGHT, CELL_TEXT, CELL_BYTES, CELL_SHAPES } CellShape;

typedef struct {
    CellShape shape;
    PyObject *name; /* NULL if the column is skipped */
    PyObject *make; /* bytes of the cell → its value; NULL if C creates the value */
} Cell;

typedef struct {
    PyObject_HEAD
    Py_ssize_t width;
    Cell *cells;
} Reader;

/* --- bytes --- */

/* Returns the end of the content at `at`, and its start in `content`; NULL if it is truncated. */
static const char *take_content(CellShape shape, const char *at, const char *end, const char **content, int64_t *number)
{
    Py_ssize_t size;
    *content = at;
    switch (shape) {
    case CELL_LONG:
        return take_long(at, end, number);
    case CELL_TEXT:
    case CELL_BYTES:
        at = take_long(at, end, number);
        if (at == NULL || *number < 0 || *number > end - at)
            return NULL;
        *content = at;
        return at + *number;
    case CELL_BOOLEAN:
        if (at == end || (unsigned char)*at > 1)
            return NULL;
        *number = *at;
        return at + 1;
    default:
        size = shape == CELL_FOUR ? 4 : 8;
        return end - at < size ? NULL : at + size;
    }
}

/* --- rows --- */

/* A new value; NULL, with or without an exception, if it is left to Python. */
static PyObject *cell_value(const Cell *cell, const char *start, const char *content, const char *end, int64_t number)
{
    if (cell->make == NULL) {
        if (cell->shape == CELL_LONG)
            return PyLong_FromLongLong(number);
        if (cell->shape == CELL_BOOLEAN)
            return PyBool_FromLong((long)number);
        return PyUnicode_DecodeUTF8(content, end - content, NULL);
    }
    PyObject *bytes = PyBytes_FromStringAndSize(start, end - start);
    if (bytes == NULL)
        return NULL;
    PyObject *value = PyObject_CallOneArg(cell->make, bytes);
    Py_DECREF(bytes);
    return value;
}

/* Returns the end of the row at `at`, and the row with the wanted columns in `row`; NULL: left to Python. */
static const char *take_row(const Reader *reader, const char *at, const char *end, PyObject **row)
{
    PyObject *found = PyDict_New();
    if (found == NULL)
        return NULL;
    for (Py_ssize_t index = 0; index < reader->width; index++) {
        const Cell *cell = &reader->cells[index];
        const char *start = at, *content;
        int64_t number = 0;
        if (at == end || (*at != 0 && *at != 2))
            goto odd;
        int branch = *at++ / 2;
        if (branch != 0 && (at = take_content(cell->shape, at, end, &content, &number)) == NULL)
            goto odd;
        if (cell->name == NULL)
            continue;
        PyObject *value = branch == 0 ? Py_NewRef(Py_None) : cell_value(cell, start, content, at, number);
        if (value == NULL)
            goto odd;
        int failed = PyDict_SetItem(found, cell->name, value);
        Py_DECREF(value);
        if (failed)
            goto odd;
    }
    *row = found;
    return at;
odd:
    Py_DECREF(found);
    return NULL;
}

/* Returns the end of the optional row at `at`; `row` is NULL if there is none. */
static const char *take_optional_row(const Reader *reader, const char *at, const char *end, PyObject **row)
{
    *row = NULL;
    if (at == end || (*at != 0 && *at != 2))
        return NULL;
    return *at == 0 ? at + 1 : take_row(reader, at + 1, end, row);
}

/* Returns the end of the string at `at`, and a new str in `text`; NULL: left to Python. */
static const char *take_text(const char *at, const char *end, PyObject **text)
{
    int64_t length;
    at = take_long(at, end, &length);
    if (at == NULL || length < 0 || length > end - at)
        return NULL;
    *text = PyUnicode_DecodeUTF8(at, (Py_ssize_t)length, NULL);
    return *text == NULL ? NULL : at + length;
}

/* Returns the end of the array of strings at `at`, and its strings as a tuple in `names`; NULL: left to Python. */
static const char *take_names(const char *at, const char *end, PyObject **names)
{
    PyObject *list = PyList_New(0);
    int64_t count;
    while (list != NULL && (at = take_long(at, end, &count)) != NULL && count > 0)
        for (; count > 0; count--) {
            PyObject *name = NULL;
            at = take_text(at, end, &name);
            int failed = at == NULL || PyList_Append(list, name) != 0;
            Py_XDECREF(name);
            if (failed)
                goto odd;
        }
    if (list != NULL && at != NULL && count == 0 && (*names = PyList_AsTuple(list)) != NULL) {
        Py_DECREF(list);
        return at;
    }
odd: /* a negative count is that of a block with its size, which headrace does not write */
    Py_XDECREF(list);
    return NULL;
}

/* Returns the end of the map of strings at `at`, and the map in `texts`; NULL: left to Python. */
static const char *take_texts(const char *at, const char *end, PyObject **texts)
{
    PyObject *found = PyDict_New();
    int64_t count;
    while (found != NULL && (at = take_long(at, end, &count)) != NULL && count > 0)
        for (; count > 0; count--) {
            PyObject *name = NULL, *text = NULL;
            if ((at = take_text(at, end, &name)) != NULL)
                at = take_text(at, end, &text);
            int failed = at == NULL || PyDict_SetItem(found, name, text) != 0;
            Py_XDECREF(name);
            Py_XDECREF(text);
            if (failed)
                goto odd;
        }
    if (found != NULL && at != NULL && count == 0) {
        *texts = found;
        return at;
    }
odd:
    Py_XDECREF(found);
    return NULL;
}

/* Returns the end of the field `exact` at `at`, and its two maps as a tuple, or None, in `exact`; NULL: left to Python. */
static const char *take_exact(const char *at, const char *end, PyObject **exact)
{
    PyObject *before = NULL, *after = NULL;
    if (at == end || (*at != 0 && *at != 2))
        return NULL;
    if (*at++ == 0) {
        *exact = Py_NewRef(Py_None);
        return at;
    }
    if ((at = take_texts(at, end, &before)) != NULL && (at = take_texts(at, end, &after)) != NULL &&
        (*exact = PyTuple_Pack(2, before, after)) == NULL)
        at = NULL;
    Py_XDECREF(before);
    Py_XDECREF(after);
    return at;
}

/* read(value, position) → (ordinal, ts_ms, unchanged, before, after, exact), None: left to Python */
static PyObject *reader_read(Reader *reader, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_CheckExact(arguments[0]) || !PyLong_CheckExact(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "read takes a record and a position");
        return NULL;
    }
    Py_ssize_t position = PyLong_AsSsize_t(arguments[1]), size = PyBytes_GET_SIZE(arguments[0]);
    if (position < 0 || position > size) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    const char *at = PyBytes_AS_STRING(arguments[0]) + position, *end = PyBytes_AS_STRING(arguments[0]) + size;
    int64_t ordinal, ts_ms;
    PyObject *unchanged = NULL, *before = NULL, *after = NULL, *exact = NULL, *event = NULL;
    if ((at = take_long(at, end, &ordinal)) != NULL && (at = take_long(at, end, &ts_ms)) != NULL &&
        (at = take_names(at, end, &unchanged)) != NULL && (at = take_optional_row(reader, at, end, &before)) != NULL &&
        (at = take_optional_row(reader, at, end, &after)) != NULL &&
        (at = take_exact(at, end, &exact)) != NULL && at == end)
        event = Py_BuildValue("LLOOOO", (long long)ordinal, (long long)ts_ms, unchanged,
                              before != NULL ? before : Py_None, after != NULL ? after : Py_None, exact);
    Py_XDECREF(unchanged);
    Py_XDECREF(before);
    Py_XDECREF(after);
    Py_XDECREF(exact);
    if (event == NULL) {
        /* The Python reader raises the error of a wrong value again, with its message. */
        if (PyErr_Occurred() &&
            (PyErr_ExceptionMatches(PyExc_MemoryError) || !PyErr_ExceptionMatches(PyExc_Exception)))
            return NULL;
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    return event;
}

/* --- the reader as an object --- */

static int reader_clear(Reader *reader)
{
    for (Py_ssize_t index = 0; index < reader->width; index++) {
        Py_CLEAR(reader->cells[index].name);
        Py_CLEAR(reader->cells[index].make);
    }
    return 0;
}

static int reader_traverse(Reader *reader, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(reader));
    for (Py_ssize_t index = 0; index < reader->width; index++) {
        Py_VISIT(reader->cells[index].name);
        Py_VISIT(reader->cells[index].make);
    }
    return 0;
}

static void reader_dealloc(Reader *reader)
{
    PyTypeObject *type = Py_TYPE(reader);
    PyObject_GC_UnTrack(reader);
    reader_clear(reader);
    PyMem_RawFree(reader->cells);
    type->tp_free((PyObject *)reader);
    Py_DECREF(type);
}

/* Reader(cells): for each column its shape, its name or None, and its decoder or None */
static PyObject *reader_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(keywords))
{
    PyObject *cells;
    if (!PyArg_ParseTuple(arguments, "O!", &PyTuple_Type, &cells))
        return NULL;
    Reader *reader = (Reader *)type->tp_alloc(type, 0); /* zeroed */
    if (reader == NULL)
        return NULL;
    reader->cells = PyMem_RawCalloc((size_t)PyTuple_GET_SIZE(cells) + 1, sizeof *reader->cells);
    if (reader->cells == NULL) {
        Py_DECREF(reader);
        return PyErr_NoMemory();
    }
    reader->width = PyTuple_GET_SIZE(cells);
    for (Py_ssize_t index = 0; index < reader->width; index++) {
        PyObject *described = PyTuple_GET_ITEM(cells, index), *name, *make;
        Cell *cell = &reader->cells[index];
        int shape;
        if (!PyTuple_Check(described) || !PyArg_ParseTuple(described, "iOO", &shape, &name, &make)) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_TypeError, "a cell that is no tuple");
            Py_DECREF(reader);
            return NULL;
        }
        int only_python = shape == CELL_FOUR || shape == CELL_EIGHT || shape == CELL_BYTES;
        if (shape < 0 || shape >= CELL_SHAPES || (name != Py_None && make == Py_None && only_python)) {
            PyErr_SetString(PyExc_ValueError, "a cell of no shape, or one whose values only Python makes");
            Py_DECREF(reader);
            return NULL;
        }
        cell->shape = (CellShape)shape;
        cell->name = name == Py_None ? NULL : Py_NewRef(name);
        cell->make = make == Py_None ? NULL : Py_NewRef(make);
    }
    return (PyObject *)reader;
}

static PyMethodDef reader_methods[] = {
    CODEC_METHOD("read", reader_read),
    {0},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_doc, "How a migration's columns are read from records of one schema; see schemas/codec/_compiled.pyi."},
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_traverse, reader_traverse},
    {Py_tp_clear, reader_clear},
    {Py_tp_methods, reader_methods},
    {0, NULL},
};

PyType_Spec codec_reader_spec = {
    .name = "schemas.codec._compiled.Reader",
    .basicsize = sizeof(Reader),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = reader_slots,
};
