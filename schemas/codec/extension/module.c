/* Encodes rows in C: the same bytes as schemas/codec/encoder.py, for the rows that C handles.
 *
 * Any other row, and any chunk with such a row, goes to the plan's Python functions: they encode it or raise the error
 * with the column. So errors are decided in one place. */

#include "copy.h"
#include "records.h"

#define VERSION 4         /* schemas/codec/implementation.py accepts no other: a build may be older than the checkout */
#define SCRATCH (1 << 20) /* a larger buffer is not kept for the next row */

/* --- rows of the stream --- */

/* Fills `fields` from a row; they point into the row's data. No Python code runs meanwhile. */
static Outcome fetch(PyObject *row, Field *fields, Py_ssize_t width)
{
    if (Py_TYPE(row) == &RowType) {
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
        else if (item == UNCHANGED)
            field->form = VALUE_UNCHANGED;
        else
            return ODD;
    }
    return DONE;
}

/* Empties the plan's buffers, and frees those that an exceptional row has enlarged. */
static void rewind_scratch(Plan *plan)
{
    if (plan->value.capacity > SCRATCH)
        release(&plan->value);
    if (plan->message_key.capacity > SCRATCH)
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
        else if ((outcome = put_value(cell, column, field->text, field->size)) == DONE)
            outcome = put(out, cell->data + start + 1, cell->size - start - 1);
        cell->size = start; /* a cell's position is relative to its row; here it was temporary */
    }
    return outcome;
}

typedef enum { NEW_ROW, OLD_ROW, OLD_KEYED_ROW } Part;

static Outcome put_cells(Plan *plan, const Field *fields, Part part)
{
    for (Py_ssize_t index = 0; index < plan->width; index++) {
        const Column *column = &plan->columns[index];
        const Field *field = &fields[index];
        int told = part == NEW_ROW || !column->lacking || (part == OLD_KEYED_ROW && column->key && !column->partial);
        Outcome outcome;
        if (!told || field->form == VALUE_NULL || (field->form == VALUE_UNCHANGED && column->toastable))
            outcome = put_byte(&plan->value, 0);
        else if (field->form == VALUE_UNCHANGED)
            outcome = ODD;
        else
            outcome = put_value(&plan->value, column, field->text, field->size);
        if (outcome != DONE)
            return outcome;
    }
    return DONE;
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

static Outcome put_number(Buffer *out, PyObject *number)
{
    int overflow = 0;
    if (!PyLong_CheckExact(number))
        return ODD;
    long long value = PyLong_AsLongLongAndOverflow(number, &overflow);
    return overflow ? ODD : put_long(out, value);
}

/* Common code of change, update and delete; in `arguments` a missing row is None. */
static Outcome put_record(Plan *plan, PyObject *const *arguments, PyObject *old, PyObject *new)
{
    Outcome outcome = DONE;
    if (!PyBytes_CheckExact(arguments[0]))
        return ODD;
    if (old != NULL)
        outcome = fetch(old, plan->old_fields, plan->width);
    if (outcome == DONE && new != NULL)
        outcome = fetch(new, plan->new_fields, plan->width);
    if (outcome == DONE)
        outcome = put_object(&plan->value, arguments[0]);
    if (outcome == DONE)
        outcome = put_number(&plan->value, arguments[1]);
    if (outcome == DONE)
        outcome = put_number(&plan->value, arguments[2]);
    if (outcome == DONE)
        outcome = new != NULL ? put_unchanged(plan) : put_object(&plan->value, plan->lacking);
    if (outcome == DONE)
        outcome = put_byte(&plan->value, old != NULL ? 2 : 0);
    if (outcome == DONE && old != NULL)
        outcome = put_cells(plan, plan->old_fields, new != NULL ? OLD_ROW : OLD_KEYED_ROW);
    if (outcome == DONE)
        outcome = put_byte(&plan->value, new != NULL ? 2 : 0);
    if (outcome == DONE && new != NULL)
        outcome = put_cells(plan, plan->new_fields, NEW_ROW);
    if (outcome == DONE)
        outcome = put_key(plan, new != NULL ? plan->new_fields : plan->old_fields);
    return outcome;
}

static PyObject *record(Plan *plan, int function, PyObject *const *arguments, Py_ssize_t count, PyObject *old,
                        PyObject *new)
{
    rewind_scratch(plan);
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

static PyObject *plan_change(Plan *plan, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 4)
        return in_python(plan, CHANGE, arguments, count);
    return record(plan, CHANGE, arguments, count, NULL, arguments[3]);
}

static PyObject *plan_update(Plan *plan, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 5)
        return in_python(plan, UPDATE, arguments, count);
    return record(plan, UPDATE, arguments, count, arguments[3], arguments[4]);
}

static PyObject *plan_delete(Plan *plan, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 4)
        return in_python(plan, DELETE, arguments, count);
    return record(plan, DELETE, arguments, count, arguments[3], NULL);
}

static PyObject *plan_key(Plan *plan, PyObject *const *arguments, Py_ssize_t count)
{
    rewind_scratch(plan);
    Outcome outcome = count == 1 ? fetch(arguments[0], plan->new_fields, plan->width) : ODD;
    if (outcome == DONE)
        outcome = put_key(plan, plan->new_fields);
    if (outcome == ODD)
        return in_python(plan, KEY, arguments, count);
    if (outcome == NO_MEMORY)
        return PyErr_NoMemory();
    return as_bytes(plan->message_key.data, plan->message_key.size);
}

/* --- the plan as an object --- */

static int plan_clear(Plan *plan)
{
    for (int index = 0; index < FUNCTIONS; index++)
        Py_CLEAR(plan->python[index]);
    return 0;
}

static int plan_traverse(Plan *plan, visitproc visit, void *arg)
{
    for (int index = 0; index < FUNCTIONS; index++)
        Py_VISIT(plan->python[index]);
    return 0;
}

static void plan_dealloc(Plan *plan)
{
    PyObject_GC_UnTrack(plan);
    plan_clear(plan);
    Py_XDECREF(plan->header);
    Py_XDECREF(plan->lacking);
    Py_XDECREF(plan->names);
    PyMem_RawFree(plan->columns);
    PyMem_RawFree(plan->key);
    PyMem_RawFree(plan->old_fields);
    PyMem_RawFree(plan->new_fields);
    release(&plan->value);
    release(&plan->message_key);
    Py_TYPE(plan)->tp_free((PyObject *)plan);
}

static int read_description(Plan *plan, PyObject *columns, PyObject *key)
{
    plan->width = PyTuple_GET_SIZE(columns);
    plan->keys = PyTuple_GET_SIZE(key);
    plan->columns = PyMem_RawCalloc((size_t)plan->width + 1, sizeof *plan->columns);
    plan->key = PyMem_RawCalloc((size_t)plan->keys + 1, sizeof *plan->key);
    plan->old_fields = PyMem_RawCalloc((size_t)plan->width + 1, sizeof *plan->old_fields);
    plan->new_fields = PyMem_RawCalloc((size_t)plan->width + 1, sizeof *plan->new_fields);
    if (plan->columns == NULL || plan->key == NULL || plan->old_fields == NULL || plan->new_fields == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t index = 0; index < plan->width; index++) {
        Column *column = &plan->columns[index];
        PyObject *described = PyTuple_GET_ITEM(columns, index);
        int kind;
        long long low, high;
        if (!PyTuple_Check(described) ||
            !PyArg_ParseTuple(described, "iLLiippp", &kind, &low, &high, &column->precision, &column->scale,
                              &column->partial, &column->toastable, &column->lacking)) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_TypeError, "a column that is no tuple");
            return -1;
        }
        if (kind < 0 || kind >= KINDS || column->precision < 0 || column->scale < 0) {
            PyErr_SetString(PyExc_ValueError, "a column of no kind");
            return -1;
        }
        column->kind = (Kind)kind;
        column->low = low;
        column->high = high;
        plan->floating |= kind == FLOAT || kind == DOUBLE;
        if (!PyBytes_CheckExact(PyTuple_GET_ITEM(plan->names, index))) {
            PyErr_SetString(PyExc_TypeError, "a name that is no bytes");
            return -1;
        }
    }
    for (Py_ssize_t part = 0; part < plan->keys; part++) {
        Py_ssize_t index = PyLong_AsSsize_t(PyTuple_GET_ITEM(key, part));
        if (index < 0 || index >= plan->width) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_ValueError, "a key column that there is not");
            return -1;
        }
        plan->key[part] = index;
        plan->columns[index].key = 1;
    }
    return 0;
}

/* Plan(columns, key, header, lacking, names, python) */
static PyObject *plan_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    PyObject *columns, *key, *header, *lacking, *names;
    PyObject *python[FUNCTIONS];
    if (keywords != NULL && PyDict_GET_SIZE(keywords) > 0) {
        PyErr_SetString(PyExc_TypeError, "Plan takes no keywords");
        return NULL;
    }
    if (!PyArg_ParseTuple(arguments, "O!O!SSO!(OOOOO)", &PyTuple_Type, &columns, &PyTuple_Type, &key, &header,
                          &lacking, &PyTuple_Type, &names, &python[COPY], &python[KEY], &python[CHANGE],
                          &python[UPDATE], &python[DELETE]))
        return NULL;
    if (PyTuple_GET_SIZE(names) != PyTuple_GET_SIZE(columns) || PyTuple_GET_SIZE(key) == 0) {
        PyErr_SetString(PyExc_ValueError, "a plan takes a name for each column, and a key");
        return NULL;
    }
    Plan *plan = (Plan *)type->tp_alloc(type, 0); /* zeroed */
    if (plan == NULL)
        return NULL;
    Py_INCREF(header);
    Py_INCREF(lacking);
    Py_INCREF(names);
    plan->header = header;
    plan->lacking = lacking;
    plan->names = names;
    for (int index = 0; index < FUNCTIONS; index++) {
        Py_INCREF(python[index]);
        plan->python[index] = python[index];
    }
    if (read_description(plan, columns, key) != 0) {
        Py_DECREF(plan);
        return NULL;
    }
    return (PyObject *)plan;
}

#define FAST(name, function) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL}

static PyMethodDef plan_methods[] = {
    FAST("encode_copy", plan_encode_copy),
    FAST("key", plan_key),
    FAST("change", plan_change),
    FAST("update", plan_update),
    FAST("delete", plan_delete),
    {0},
};

static PyTypeObject PlanType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "schemas.codec._compiled.Plan",
    .tp_doc = "How the rows of one table are encoded; see schemas/codec/_compiled.pyi.",
    .tp_basicsize = sizeof(Plan),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = plan_new,
    .tp_dealloc = (destructor)plan_dealloc,
    .tp_traverse = (traverseproc)plan_traverse,
    .tp_clear = (inquiry)plan_clear,
    .tp_methods = plan_methods,
};

static PyMethodDef module_methods[] = {
    FAST("copy_data", copy_data),
    FAST("mentions", mentions),
    {"sift", sift, METH_VARARGS, NULL},
    FAST("tuple_row", tuple_row),
    {0},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "schemas.codec._compiled",
    .m_doc = "Rows to Avro, compiled; see schemas/codec/implementation.py.",
    .m_size = -1,
    .m_methods = module_methods,
};

PyMODINIT_FUNC PyInit__compiled(void)
{
    PyObject *events = PyImport_ImportModule("schemas.events");
    if (events == NULL)
        return NULL;
    UNCHANGED = PyObject_GetAttrString(events, "UNCHANGED");
    Py_DECREF(events);
    if (UNCHANGED == NULL || !name_methods() || PyType_Ready(&PlanType) < 0 || PyType_Ready(&RowType) < 0 ||
        PyType_Ready(&ReaderType) < 0)
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made == NULL || PyModule_AddIntConstant(made, "VERSION", VERSION) < 0 ||
        PyModule_AddObjectRef(made, "Plan", (PyObject *)&PlanType) < 0 ||
        PyModule_AddObjectRef(made, "Row", (PyObject *)&RowType) < 0 ||
        PyModule_AddObjectRef(made, "Reader", (PyObject *)&ReaderType) < 0) {
        Py_XDECREF(made);
        return NULL;
    }
    return made;
}
