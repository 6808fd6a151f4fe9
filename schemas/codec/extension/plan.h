/* The encoding plan of a table's rows, with the Python functions for rows that C does not handle. */

#ifndef CODEC_PLAN_H
#define CODEC_PLAN_H

#include "row.h"
#include "values.h"

enum { COPY, KEY, CHANGE, UPDATE, DELETE, FUNCTIONS };

typedef struct {
    PyObject_HEAD
    const CodecState *state;     /* of the type, to which the plan refers */
    Py_ssize_t width, keys;
    Column *columns;
    Py_ssize_t *key;             /* the key columns' indexes, in the key's order */
    int floating;                /* whether a column needs the GIL */
    PyObject *header, *lacking;  /* bytes: the prefix of a key, and the array of the columns that an old row lacks */
    PyObject *names;             /* a tuple of bytes: each column's name as an Avro string */
    PyObject *python[FUNCTIONS]; /* the functions for the other rows */
    Field *old_fields, *new_fields;
    Buffer value, message_key;
} Plan;

static inline PyObject *in_python(Plan *plan, int function, PyObject *const *arguments, Py_ssize_t count)
{
    if (plan->python[function] == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a plan that is being forgotten");
        return NULL;
    }
    return PyObject_Vectorcall(plan->python[function], arguments, (size_t)count, NULL);
}

/* Writes an entry of `exact`: the column's name and the value's text. */
static inline Outcome put_exact_text(const Plan *plan, Buffer *out, Py_ssize_t index, const char *text, size_t size)
{
    return put_object(out, PyTuple_GET_ITEM(plan->names, index)) == DONE ? put_string(out, text, size) : NO_MEMORY;
}

/* Empties the plan's buffers, and frees those that an exceptional row has enlarged. */
void codec_rewind(Plan *plan);

/* Writes an event and its key from the plan's fields: those of an old row, a new one, or both. Needs the GIL; if it is
 * not DONE, the caller discards what was written. */
Outcome codec_put_event(Plan *plan, PyObject *prefix, int64_t ordinal, int64_t ts_ms, int old, int new);

/* The methods of a plan. */
PyObject *codec_changes(Plan *plan, PyObject *arguments);
PyObject *codec_copy_marks(Plan *plan, PyObject *const *arguments, Py_ssize_t count);
PyObject *codec_encode_copy(Plan *plan, PyObject *const *arguments, Py_ssize_t count);
PyObject *codec_key(Plan *plan, PyObject *const *arguments, Py_ssize_t count);
PyObject *codec_change(Plan *plan, PyObject *const *arguments, Py_ssize_t count);
PyObject *codec_update(Plan *plan, PyObject *const *arguments, Py_ssize_t count);
PyObject *codec_delete(Plan *plan, PyObject *const *arguments, Py_ssize_t count);

#endif
