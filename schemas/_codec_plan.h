/* What is known of a table's rows before there are any, and who takes those that C does not. */

#ifndef HEADRACE_CODEC_PLAN_H
#define HEADRACE_CODEC_PLAN_H

#include "_codec_row.h"

enum { COPY, KEY, CHANGE, UPDATE, DELETE, FUNCTIONS };

typedef struct {
    PyObject_HEAD
    Py_ssize_t width, keys;
    Column *columns;
    Py_ssize_t *key;             /* the key columns' indexes, in the key's order */
    int floating;                /* whether a column needs the interpreter's lock */
    PyObject *header, *lacking;  /* bytes: before a key, and the array of the columns that an old row lacks */
    PyObject *names;             /* a tuple of bytes: each column's name as an Avro string */
    PyObject *python[FUNCTIONS]; /* who takes the rows that this does not */
    Field *old_fields, *new_fields;
    Buffer value, message_key;
} Plan;

static Outcome put_object(Buffer *out, PyObject *bytes)
{
    return put(out, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
}

static PyObject *as_bytes(const char *data, size_t size)
{
    return PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
}

static PyObject *in_python(Plan *plan, int function, PyObject *const *arguments, Py_ssize_t count)
{
    if (plan->python[function] == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a plan that is being forgotten");
        return NULL;
    }
    return PyObject_Vectorcall(plan->python[function], arguments, (size_t)count, NULL);
}

#endif
