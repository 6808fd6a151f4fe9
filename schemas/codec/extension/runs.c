/* Encodes changes of one relation from their messages: the same records as producers/publish/capture.py makes one by one.
 *
 * Ends before the first change that C does not handle, or that takes a decision: the caller handles that one. So errors
 * and decisions are in one place. */

#include "plan.h"

typedef enum { CREATED, UPDATED, REPLACED, DELETED, CHANGES } Change;

typedef struct {
    Py_ssize_t marker;         /* where in a message the marker of its first tuple is */
    const char *identity;      /* for each column, whether it belongs to the replica identity */
    PyObject *prefix[CHANGES]; /* bytes; another object where such a change is left to the caller */
    long long ordinal, ts_ms;  /* of the next change */
    int whole;                 /* whether an update that omits a value is left to the caller */
    Py_ssize_t largest;        /* bytes of a record */
    PyObject *records;         /* a list, to which records are added */
} Run;

/* Reads the tuple whose marker is at `at`; returns its end, 0 if the codec does not handle it. */
static Py_ssize_t read_tuple(const Plan *plan, const char *data, Py_ssize_t size, Py_ssize_t at, Field *fields)
{
    if (size - at < 3)
        return 0;
    Py_ssize_t width = (Py_ssize_t)(unsigned char)data[at + 1] << 8 | (unsigned char)data[at + 2];
    if (width != plan->width)
        return 0;
    at += 3;
    for (Py_ssize_t index = 0; index < width; index++) {
        at = read_column(data, size, at, &fields[index]);
        if (at == 0)
            return 0;
    }
    return at;
}

/* Whether the new row, with the old one's values where it omits its own, has the old row's key. */
static int complete(Plan *plan)
{
    for (Py_ssize_t index = 0; index < plan->width; index++)
        if (plan->new_fields[index].form == VALUE_UNCHANGED)
            plan->new_fields[index] = plan->old_fields[index];
    for (Py_ssize_t part = 0; part < plan->keys; part++) {
        const Field *old = &plan->old_fields[plan->key[part]], *new = &plan->new_fields[plan->key[part]];
        if (old->form != VALUE_TEXT || new->form != VALUE_TEXT || old->size != new->size ||
            memcmp(old->text, new->text, new->size) != 0)
            return 0;
    }
    return 1;
}

static int omits(const Plan *plan)
{
    for (Py_ssize_t index = 0; index < plan->width; index++)
        if (plan->new_fields[index].form == VALUE_UNCHANGED)
            return 1;
    return 0;
}

/* Reads a change into the plan's fields; returns CHANGES if it is left to the caller. */
static Change read_change(Plan *plan, const Run *run, const char *data, Py_ssize_t size)
{
    Py_ssize_t at = run->marker;
    if (size <= at)
        return CHANGES;
    char marker = data[at];
    Change change = CHANGES;
    if (data[0] == 'I' && marker == 'N')
        change = CREATED;
    else if (data[0] == 'U' && marker == 'N')
        change = UPDATED;
    else if (data[0] == 'U' && marker == 'O')
        change = REPLACED;
    else if (data[0] == 'D' && (marker == 'K' || marker == 'O'))
        change = DELETED;
    if (change == REPLACED || change == DELETED)
        at = read_tuple(plan, data, size, at, plan->old_fields);
    if (change == REPLACED && (at == 0 || at == size || data[at] != 'N'))
        return CHANGES;
    if (change != DELETED && change != CHANGES)
        at = read_tuple(plan, data, size, at, plan->new_fields);
    if (at != size || (change == REPLACED && !complete(plan)))
        return CHANGES;
    if (run->whole && (change == UPDATED || change == REPLACED) && omits(plan))
        return CHANGES;
    /* In a key tuple the other columns are null. */
    for (Py_ssize_t index = 0; change == DELETED && marker == 'K' && index < plan->width; index++)
        if (!run->identity[index])
            plan->old_fields[index].form = VALUE_UNCHANGED;
    return change;
}

static int add_record(const Plan *plan, PyObject *records, PyObject *key, PyObject *value)
{
    PyObject *record = PyDict_New();
    int failed = record == NULL || PyDict_SetItem(record, plan->state->key, key) < 0 ||
                 PyDict_SetItem(record, plan->state->value, value) < 0 || PyList_Append(records, record) < 0;
    Py_XDECREF(record);
    return failed ? -1 : 0;
}

/* Adds the records of a change; returns 1, 0 if it is left to the caller, and -1 with an exception. */
static int add_change(Plan *plan, const Run *run, PyObject *message)
{
    if (!PyBytes_CheckExact(message))
        return 0;
    Change change = read_change(plan, run, PyBytes_AS_STRING(message), PyBytes_GET_SIZE(message));
    if (change == CHANGES || !PyBytes_CheckExact(run->prefix[change]))
        return 0;
    codec_rewind(plan);
    Outcome outcome = codec_put_event(plan, run->prefix[change], run->ordinal, run->ts_ms,
                                      change == REPLACED || change == DELETED, change != DELETED);
    if (outcome == NO_MEMORY) {
        PyErr_NoMemory();
        return -1;
    }
    if (outcome != DONE || plan->message_key.size + plan->value.size > (size_t)run->largest)
        return 0;
    PyObject *key = as_bytes(plan->message_key.data, plan->message_key.size);
    PyObject *value = as_bytes(plan->value.data, plan->value.size);
    int failed = key == NULL || value == NULL || add_record(plan, run->records, key, value) < 0 ||
                 (change == DELETED && add_record(plan, run->records, key, Py_None) < 0);
    Py_XDECREF(key);
    Py_XDECREF(value);
    return failed ? -1 : 1;
}

/* changes(messages, start, marker, identity, prefixes, ordinal, ts_ms, whole, largest, records) -> number */
PyObject *codec_changes(Plan *plan, PyObject *arguments)
{
    PyObject *messages, *identity;
    Py_ssize_t start;
    Run run;
    if (!PyArg_ParseTuple(arguments, "O!nnS(OOOO)LLpnO!", &PyList_Type, &messages, &start, &run.marker, &identity,
                          &run.prefix[CREATED], &run.prefix[UPDATED], &run.prefix[REPLACED], &run.prefix[DELETED],
                          &run.ordinal, &run.ts_ms, &run.whole, &run.largest, &PyList_Type, &run.records))
        return NULL;
    if (start < 0 || run.marker < 1 || run.largest < 0 || PyBytes_GET_SIZE(identity) != plan->width) {
        PyErr_SetString(PyExc_ValueError, "a negative number, or another number of columns");
        return NULL;
    }
    run.identity = PyBytes_AS_STRING(identity);
    Py_ssize_t next = start;
    for (; next < PyList_GET_SIZE(messages); next++, run.ordinal++) {
        PyObject *message = Py_NewRef(PyList_GET_ITEM(messages, next)); /* the list is the caller's */
        int added = add_change(plan, &run, message);
        Py_DECREF(message);
        if (added < 0)
            return NULL;
        if (added == 0)
            break;
    }
    return PyLong_FromSsize_t(next - start);
}
