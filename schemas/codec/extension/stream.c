/* Encodes rows of the stream in C: the same bytes as schemas/codec/row_encoder.py, for the rows that C handles.
 *
 * Any other row goes to the plan's Python functions: they encode it or raise the error with the column. So errors are
 * decided in one place. */

#include "plan.h"

#define CODEC_SCRATCH (1 << 20) /* a larger buffer is not kept for the next row */

/* Fills `fields` from a row; they point into the row's data. No Python code runs meanwhile. */
static Outcome fetch(const CodecState *state, PyObject *row, Field *fields, Py_ssize_t width)
{
    if (Py_TYPE(row) == state->row_type) {
        Row *raw = (Row *)row;
        Py_ssize_t at = raw->start;
        if (raw->width != width)
            return ODD;
        for (Py_ssize_t index = 0; index < width; index++) {
            at = read_column(PyBytes_AS_STRING(raw->payload), raw->end, at, &fields[index]);
            if (at == 0)
                return ODD;
        }
        return DONE;
    }
    if ((!PyList_CheckExact(row) && !PyTuple_CheckExact(row)) || PySequence_Fast_GET_SIZE(row) != width)
        return ODD;
    PyObject **items = PySequence_Fast_ITEMS(row);
    for (Py_ssize_t index = 0; index < width; index++) {
        PyObject *item = items[index];
        Field *field = &fields[index];
        if (PyBytes_CheckExact(item)) {
            field->form = VALUE_TEXT;
            field->text = PyBytes_AS_STRING(item);
            field->size = (size_t)PyBytes_GET_SIZE(item);
        }
        else if (item == Py_None)
            field->form = VALUE_NULL;
        else if (item == state->unchanged)
            field->form = VALUE_UNCHANGED;
        else
            return ODD;
    }
    return DONE;
}

void codec_rewind(Plan *plan)
{
    if (plan->value.capacity > CODEC_SCRATCH)
        release(&plan->value);
    if (plan->message_key.capacity > CODEC_SCRATCH)
        release(&plan->message_key);
    plan->value.size = plan->message_key.size = 0;
}

static Outcome put_key(Plan *plan, const Field *fields)
{
    Buffer *out = &plan->message_key, *cell = &plan->value;
    Outcome outcome = put_object(out, plan->header);
    for (Py_ssize_t part = 0; outcome == DONE && part < plan->keys; part++) {
        const Column *column = &plan->columns[plan->key[part]];
        const Field *field = &fields[plan->key[part]];
        size_t start = cell->size;
        if (field->form != VALUE_TEXT)
            return ODD;
        if (column->partial)
            outcome = put_string(out, field->text, field->size);
        else if ((outcome = codec_put_value(cell, column, field->text, field->size)) == DONE)
            outcome = put(out, cell->data + start + 1, cell->size - start - 1);
        cell->size = start; /* a cell's position is relative to its row; here it was temporary */
    }
    return outcome;
}

typedef enum { NEW_ROW, OLD_ROW, OLD_KEYED_ROW } Part;

/* Writes the cells of a row, and adds to `apart` the number of those whose text belongs into `exact`. */
static Outcome put_cells(Plan *plan, Field *fields, Part part, int64_t *apart)
{
    for (Py_ssize_t index = 0; index < plan->width; index++) {
        const Column *column = &plan->columns[index];
        Field *field = &fields[index];
        int told = part == NEW_ROW || !column->lacking || (part == OLD_KEYED_ROW && column->key && !column->partial);
        Outcome outcome;
        if (!told || field->form == VALUE_NULL || (field->form == VALUE_UNCHANGED && column->toastable))
            outcome = put_byte(&plan->value, 0);
        else if (field->form == VALUE_UNCHANGED)
            outcome = ODD;
        else
            outcome = codec_put_value(&plan->value, column, field->text, field->size);
        field->apart = outcome == APART;
        if (field->apart)
            ++*apart;
        else if (outcome != DONE)
            return outcome;
    }
    return DONE;
}

/* The map of the texts of a row's fields that are apart. */
static Outcome put_texts(Plan *plan, const Field *fields, int64_t apart)
{
    if (apart == 0)
        return put_byte(&plan->value, 0);
    Outcome outcome = put_long(&plan->value, apart);
    for (Py_ssize_t index = 0; outcome == DONE && index < plan->width; index++)
        if (fields[index].apart)
            outcome = put_exact_text(plan, &plan->value, index, fields[index].text, fields[index].size);
    return outcome == DONE ? put_byte(&plan->value, 0) : outcome;
}

/* The field `exact`, with which an event ends. */
static Outcome put_exact(Plan *plan, int64_t old_apart, int64_t new_apart)
{
    if (old_apart == 0 && new_apart == 0)
        return put_byte(&plan->value, 0);
    Outcome outcome = put_byte(&plan->value, 2);
    if (outcome == DONE)
        outcome = put_texts(plan, plan->old_fields, old_apart);
    return outcome == DONE ? put_texts(plan, plan->new_fields, new_apart) : outcome;
}

/* The array of the names of columns that the new row omits. */
static Outcome put_unchanged(Plan *plan)
{
    int64_t count = 0;
    for (Py_ssize_t index = 0; index < plan->width; index++)
        count += plan->new_fields[index].form == VALUE_UNCHANGED;
    if (count == 0)
        return put_byte(&plan->value, 0);
    Outcome outcome = put_long(&plan->value, count);
    for (Py_ssize_t index = 0; outcome == DONE && index < plan->width; index++)
        if (plan->new_fields[index].form == VALUE_UNCHANGED)
            outcome = put_object(&plan->value, PyTuple_GET_ITEM(plan->names, index));
    return outcome == DONE ? put_byte(&plan->value, 0) : outcome;
}

Outcome codec_put_event(Plan *plan, PyObject *prefix, int64_t ordinal, int64_t ts_ms, int old, int new)
{
    int64_t old_apart = 0, new_apart = 0;
    Outcome outcome = put_object(&plan->value, prefix);
    if (outcome == DONE)
        outcome = put_long(&plan->value, ordinal);
    if (outcome == DONE)
        outcome = put_long(&plan->value, ts_ms);
    if (outcome == DONE)
        outcome = new ? put_unchanged(plan) : put_object(&plan->value, plan->lacking);
    if (outcome == DONE)
        outcome = put_byte(&plan->value, old ? 2 : 0);
    if (outcome == DONE && old)
        outcome = put_cells(plan, plan->old_fields, new ? OLD_ROW : OLD_KEYED_ROW, &old_apart);
    if (outcome == DONE)
        outcome = put_byte(&plan->value, new ? 2 : 0);
    if (outcome == DONE && new)
        outcome = put_cells(plan, plan->new_fields, NEW_ROW, &new_apart);
    if (outcome == DONE)
        outcome = put_exact(plan, old_apart, new_apart);
    if (outcome == DONE)
        outcome = put_key(plan, new ? plan->new_fields : plan->old_fields);
    return outcome;
}

/* Reads a number; returns 0 if the codec does not handle it. */
static int read_number(PyObject *from, int64_t *number)
{
    int overflow = 0;
    if (!PyLong_CheckExact(from))
        return 0;
    *number = PyLong_AsLongLongAndOverflow(from, &overflow);
    return !overflow;
}

/* Common code of change, update and delete; in `arguments` a missing row is None. */
static Outcome put_record(Plan *plan, PyObject *const *arguments, PyObject *old, PyObject *new)
{
    Outcome outcome = DONE;
    int64_t ordinal, ts_ms;
    if (!PyBytes_CheckExact(arguments[0]) || !read_number(arguments[1], &ordinal) || !read_number(arguments[2], &ts_ms))
        return ODD;
    if (old != NULL)
        outcome = fetch(plan->state, old, plan->old_fields, plan->width);
    if (outcome == DONE && new != NULL)
        outcome = fetch(plan->state, new, plan->new_fields, plan->width);
    return outcome == DONE ? codec_put_event(plan, arguments[0], ordinal, ts_ms, old != NULL, new != NULL) : outcome;
}

static PyObject *record(Plan *plan, int function, PyObject *const *arguments, Py_ssize_t count, PyObject *old,
                        PyObject *new)
{
    codec_rewind(plan);
    Outcome outcome = put_record(plan, arguments, old, new);
    if (outcome == ODD)
        return in_python(plan, function, arguments, count);
    if (outcome == NO_MEMORY)
        return PyErr_NoMemory();
    PyObject *key = as_bytes(plan->message_key.data, plan->message_key.size);
    PyObject *value = as_bytes(plan->value.data, plan->value.size);
    PyObject *pair = key != NULL && value != NULL ? PyTuple_Pack(2, key, value) : NULL;
    Py_XDECREF(key);
    Py_XDECREF(value);
    return pair;
}

PyObject *codec_change(Plan *plan, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 4)
        return in_python(plan, CHANGE, arguments, count);
    return record(plan, CHANGE, arguments, count, NULL, arguments[3]);
}

PyObject *codec_update(Plan *plan, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 5)
        return in_python(plan, UPDATE, arguments, count);
    return record(plan, UPDATE, arguments, count, arguments[3], arguments[4]);
}

PyObject *codec_delete(Plan *plan, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 4)
        return in_python(plan, DELETE, arguments, count);
    return record(plan, DELETE, arguments, count, arguments[3], NULL);
}

PyObject *codec_key(Plan *plan, PyObject *const *arguments, Py_ssize_t count)
{
    codec_rewind(plan);
    Outcome outcome = count == 1 ? fetch(plan->state, arguments[0], plan->new_fields, plan->width) : ODD;
    if (outcome == DONE)
        outcome = put_key(plan, plan->new_fields);
    if (outcome == ODD)
        return in_python(plan, KEY, arguments, count);
    if (outcome == NO_MEMORY)
        return PyErr_NoMemory();
    return as_bytes(plan->message_key.data, plan->message_key.size);
}
