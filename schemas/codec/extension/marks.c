/* Sorts marks into parts by the hash of their key, and compares a part of the topic with the same part of the table. */

#include "marks.h"

#define NOWHERE UINT64_MAX

static int are_marks(PyObject *bytes)
{
    return PyBytes_CheckExact(bytes) && PyBytes_GET_SIZE(bytes) % (Py_ssize_t)sizeof(Mark) == 0;
}

/* scatter(marks, parts): append each mark to the bytearray of its part, of which there are a power of two */
PyObject *codec_scatter(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !are_marks(arguments[0]) || !PyList_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "scatter takes marks and a list");
        return NULL;
    }
    PyObject *parts = arguments[1];
    Py_ssize_t number = PyList_GET_SIZE(parts);
    const char *marks = PyBytes_AS_STRING(arguments[0]);
    size_t size = (size_t)PyBytes_GET_SIZE(arguments[0]);
    int bits = 0;
    while (bits < 32 && (Py_ssize_t)1 << bits < number)
        bits++;
    if (number != (Py_ssize_t)1 << bits) {
        PyErr_SetString(PyExc_ValueError, "parts that are no power of two");
        return NULL;
    }
    Py_ssize_t *ends = PyMem_RawCalloc((size_t)number, sizeof *ends);
    if (ends == NULL)
        return PyErr_NoMemory();
    /* Two passes, so that each part grows once. */
    Mark mark;
    for (size_t at = 0; at < size; at += sizeof mark) {
        memcpy(&mark, marks + at, sizeof mark);
        ends[bits == 0 ? 0 : mark.key >> (64 - bits)] += (Py_ssize_t)sizeof mark;
    }
    for (Py_ssize_t part = 0; part < number; part++) {
        PyObject *bytes = PyList_GET_ITEM(parts, part);
        if (!PyByteArray_CheckExact(bytes)) {
            PyErr_SetString(PyExc_TypeError, "a part that is no bytearray");
            goto failed;
        }
        Py_ssize_t before = PyByteArray_GET_SIZE(bytes);
        if (ends[part] > 0 && PyByteArray_Resize(bytes, before + ends[part]) < 0)
            goto failed;
        ends[part] = before;
    }
    for (size_t at = 0; at < size; at += sizeof mark) {
        memcpy(&mark, marks + at, sizeof mark);
        Py_ssize_t part = bits == 0 ? 0 : (Py_ssize_t)(mark.key >> (64 - bits));
        memcpy(PyByteArray_AS_STRING(PyList_GET_ITEM(parts, part)) + ends[part], &mark, sizeof mark);
        ends[part] += (Py_ssize_t)sizeof mark;
    }
    PyMem_RawFree(ends);
    Py_RETURN_NONE;
failed:
    PyMem_RawFree(ends);
    return NULL;
}

/* What the topic has of a key: its row before the table was read, and after. */
typedef struct {
    uint64_t key; /* 0: free */
    uint64_t before, after, place;
    int in_table;
} Slot;

typedef struct {
    Slot *slots;
    size_t mask;
} Slots;

static uint64_t slot_key(uint64_t key)
{
    return key == 0 ? 1 : key;
}

/* The key's slot, or the free one where it belongs: there is always one. */
static Slot *slot_of(const Slots *all, uint64_t key)
{
    size_t at = (size_t)key & all->mask;
    while (all->slots[at].key != 0 && all->slots[at].key != key)
        at = (at + 1) & all->mask;
    return &all->slots[at];
}

static void enter(const Slots *all, const char *marks, size_t size, int later)
{
    Mark mark;
    for (size_t at = 0; at < size; at += sizeof mark) {
        memcpy(&mark, marks + at, sizeof mark);
        Slot *slot = slot_of(all, slot_key(mark.key));
        slot->key = slot_key(mark.key);
        if (!later)
            slot->before = mark.row;
        slot->after = mark.row;
        slot->place = mark.place;
    }
}

static Outcome report(Buffer *out, uint64_t key, uint64_t topic, uint64_t table)
{
    Mark difference = {key, topic, table};
    return put(out, (const char *)&difference, sizeof difference);
}

static Outcome compare(const Slots *all, const char *table, size_t size, Buffer *out)
{
    Mark mark;
    Outcome outcome = DONE;
    for (size_t at = 0; outcome == DONE && at < size; at += sizeof mark) {
        memcpy(&mark, table + at, sizeof mark);
        Slot *slot = slot_of(all, slot_key(mark.key));
        if (slot->key == 0) {
            outcome = report(out, mark.key, NOWHERE, mark.place);
            continue;
        }
        slot->in_table = 1;
        if (mark.row != slot->before && mark.row != slot->after)
            outcome = report(out, mark.key, slot->place, mark.place);
    }
    for (size_t at = 0; outcome == DONE && at <= all->mask; at++) {
        const Slot *slot = &all->slots[at];
        if (slot->key != 0 && !slot->in_table && slot->before != MARK_GONE && slot->after != MARK_GONE)
            outcome = report(out, slot->key, slot->place, NOWHERE);
    }
    return outcome;
}

/* differences(topic, later, table) → the keys that differ, as marks: key, place in the topic, place in the table */
PyObject *codec_differences(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || !are_marks(arguments[0]) || !are_marks(arguments[1]) || !are_marks(arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "differences takes marks");
        return NULL;
    }
    const char *data[3];
    size_t sizes[3];
    for (int each = 0; each < 3; each++) {
        data[each] = PyBytes_AS_STRING(arguments[each]);
        sizes[each] = (size_t)PyBytes_GET_SIZE(arguments[each]);
    }
    size_t capacity = 16;
    while (capacity < (sizes[0] + sizes[1]) / sizeof(Mark) * 2)
        capacity *= 2;
    Slots all = {PyMem_RawCalloc(capacity, sizeof(Slot)), capacity - 1};
    if (all.slots == NULL)
        return PyErr_NoMemory();
    Buffer out = {0};
    Outcome outcome;
    Py_BEGIN_ALLOW_THREADS
    enter(&all, data[0], sizes[0], 0);
    enter(&all, data[1], sizes[1], 1);
    outcome = compare(&all, data[2], sizes[2], &out);
    Py_END_ALLOW_THREADS
    PyMem_RawFree(all.slots);
    PyObject *found = outcome == DONE ? PyBytes_FromStringAndSize(out.data, (Py_ssize_t)out.size) : PyErr_NoMemory();
    release(&out);
    return found;
}
