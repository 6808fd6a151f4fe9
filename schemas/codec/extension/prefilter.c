/* Prefilters stretches of records, step by step as consumers/planning/prefilter.py does in Python. */

#include "codec.h"

static int contains(const char *text, size_t size, const char *needle, size_t length)
{
    if (length == 0)
        return 1;
    while (size >= length) {
        const char *found = memchr(text, needle[0], size - length + 1);
        if (found == NULL)
            return 0;
        if (memcmp(found, needle, length) == 0)
            return 1;
        size -= (size_t)(found + 1 - text);
        text = found + 1;
    }
    return 0;
}

/* Whether the value, which is bytes, contains one of the needles; -1 with an exception. */
static int mentions_any(PyObject *value, PyObject *needles)
{
    const char *text = PyBytes_AS_STRING(value);
    size_t size = (size_t)PyBytes_GET_SIZE(value);
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(needles); index++) {
        PyObject *needle = PyTuple_GET_ITEM(needles, index);
        if (!PyBytes_CheckExact(needle)) {
            PyErr_SetString(PyExc_TypeError, "a needle that is no bytes");
            return -1;
        }
        if (contains(text, size, PyBytes_AS_STRING(needle), (size_t)PyBytes_GET_SIZE(needle)))
            return 1;
    }
    return 0;
}

/* mentions(value, needles) → whether it contains one of them */
PyObject *codec_mentions(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_CheckExact(arguments[0]) || !PyTuple_CheckExact(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "mentions takes bytes and a tuple");
        return NULL;
    }
    int found = mentions_any(arguments[0], arguments[1]);
    return found < 0 ? NULL : PyBool_FromLong(found);
}

typedef struct {
    const CodecState *state;
    PyObject *topic; /* None: any */
    PyObject *partition;
    PyObject *needles;
    PyObject *known;  /* whose keys are headers of schemas */
    PyObject *header; /* common to all values of the stretch; NULL before the first */
    int readable;     /* whether that header is known */
    long long next_offset;
    Py_ssize_t tombstones, unmentioned;
    PyObject *candidates;
} Stretch;

/* The result for a record; 1 and 0 also answer yes and no. */
enum { FAILED = -1, ENDS = 0, GOES_ON = 1 };

static int answers(PyObject *record, PyObject *method, PyObject *wanted)
{
    PyObject *found = PyObject_CallMethodNoArgs(record, method);
    if (found == NULL)
        return FAILED;
    int same = PyObject_RichCompareBool(found, wanted, Py_EQ);
    Py_DECREF(found);
    return same;
}

static int belongs(const Stretch *stretch, PyObject *record)
{
    int same = answers(record, stretch->state->partition, stretch->partition);
    if (same == 1 && stretch->topic != Py_None)
        same = answers(record, stretch->state->topic, stretch->topic);
    if (same != 1)
        return same;
    /* By identity: a KafkaError cannot be compared with None. */
    PyObject *error = PyObject_CallMethodNoArgs(record, stretch->state->error);
    Py_XDECREF(error);
    return error == NULL ? FAILED : error == Py_None;
}

/* Whether the value's schema is the stretch's, which the first value defines. */
static int is_of_schema(Stretch *stretch, PyObject *value)
{
    const char *bytes = PyBytes_AS_STRING(value);
    Py_ssize_t size = PyBytes_GET_SIZE(value) < CODEC_HEADER_BYTES ? PyBytes_GET_SIZE(value) : CODEC_HEADER_BYTES;
    if (stretch->header != NULL)
        return size == PyBytes_GET_SIZE(stretch->header) &&
               memcmp(bytes, PyBytes_AS_STRING(stretch->header), (size_t)size) == 0;
    stretch->header = PyBytes_FromStringAndSize(bytes, size);
    if (stretch->header == NULL)
        return FAILED;
    stretch->readable = PyDict_Contains(stretch->known, stretch->header);
    return stretch->readable < 0 ? FAILED : 1;
}

/* Counts the record or takes it as a candidate; ENDS: neither, and the stretch ends before it. */
static int take_value(Stretch *stretch, PyObject *record, PyObject *value, int first)
{
    if (value == Py_None) {
        stretch->tombstones++;
        return GOES_ON;
    }
    if (!PyBytes_CheckExact(value)) {
        PyErr_SetString(PyExc_TypeError, "a record whose value is no bytes");
        return FAILED;
    }
    int same = is_of_schema(stretch, value);
    if (same != 1)
        return same;
    if (PyTuple_GET_SIZE(stretch->needles) > 0) {
        if (!stretch->readable && !first)
            return ENDS;
        int mentioned = stretch->readable ? mentions_any(value, stretch->needles) : 1;
        if (mentioned < 0)
            return FAILED;
        if (!mentioned) {
            stretch->unmentioned++;
            return GOES_ON;
        }
    }
    return PyList_Append(stretch->candidates, record) < 0 ? FAILED : GOES_ON;
}

static int take_record(Stretch *stretch, PyObject *record, int first)
{
    int ours = belongs(stretch, record);
    if (ours != 1)
        return ours;
    PyObject *offset = PyObject_CallMethodNoArgs(record, stretch->state->offset);
    if (offset == NULL)
        return FAILED;
    long long at = offset == Py_None ? -1 : PyLong_AsLongLong(offset);
    Py_DECREF(offset);
    if (at == -1 && PyErr_Occurred())
        return FAILED;
    if (at < stretch->next_offset)
        return GOES_ON;
    PyObject *value = PyObject_CallMethodNoArgs(record, stretch->state->value);
    if (value == NULL)
        return FAILED;
    int taken = take_value(stretch, record, value, first);
    Py_DECREF(value);
    if (taken == GOES_ON)
        stretch->next_offset = at + 1;
    return taken;
}

/* sift(records, start, topic, partition, next_offset, needles, known, room)
   → (stop, next_offset, tombstones, unmentioned, candidates) */
PyObject *codec_sift(PyObject *module, PyObject *arguments)
{
    PyObject *records;
    Py_ssize_t start, room;
    Stretch stretch = {.state = PyModule_GetState(module)};
    if (!PyArg_ParseTuple(arguments, "O!nOOLO!O!n", &PyList_Type, &records, &start, &stretch.topic,
                          &stretch.partition, &stretch.next_offset, &PyTuple_Type, &stretch.needles, &PyDict_Type,
                          &stretch.known, &room))
        return NULL;
    if (start < 0) {
        PyErr_SetString(PyExc_ValueError, "a start before the first record");
        return NULL;
    }
    stretch.candidates = PyList_New(0);
    if (stretch.candidates == NULL)
        return NULL;
    Py_ssize_t index = start;
    /* A record's methods may be Python code, which could change the list meanwhile. */
    while (index < PyList_GET_SIZE(records) && PyList_GET_SIZE(stretch.candidates) < room) {
        PyObject *record = Py_NewRef(PyList_GET_ITEM(records, index));
        int taken = take_record(&stretch, record, index == start);
        Py_DECREF(record);
        if (taken == FAILED)
            goto failed;
        if (taken == ENDS)
            break;
        index++;
    }
    Py_XDECREF(stretch.header);
    return Py_BuildValue("nLnnN", index, stretch.next_offset, stretch.tombstones, stretch.unmentioned,
                         stretch.candidates);
failed:
    Py_XDECREF(stretch.header);
    Py_DECREF(stretch.candidates);
    return NULL;
}
