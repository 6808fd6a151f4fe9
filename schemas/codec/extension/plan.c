/* The plan as an object of Python. */

#include "plan.h"

static int plan_clear(Plan *plan)
{
    for (int index = 0; index < FUNCTIONS; index++)
        Py_CLEAR(plan->python[index]);
    return 0;
}

static int plan_traverse(Plan *plan, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(plan));
    for (int index = 0; index < FUNCTIONS; index++)
        Py_VISIT(plan->python[index]);
    return 0;
}

static void plan_dealloc(Plan *plan)
{
    PyTypeObject *type = Py_TYPE(plan);
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
    type->tp_free((PyObject *)plan);
    Py_DECREF(type);
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
        if (kind < 0 || kind >= KIND_COUNT || column->precision < 0 || column->scale < 0) {
            PyErr_SetString(PyExc_ValueError, "a column of no kind");
            return -1;
        }
        column->kind = (Kind)kind;
        column->low = low;
        column->high = high;
        plan->floating |= kind == KIND_FLOAT || kind == KIND_DOUBLE;
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
    plan->state = PyType_GetModuleState(type);
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

static PyMethodDef plan_methods[] = {
    {"changes", (PyCFunction)(void (*)(void))codec_changes, METH_VARARGS, NULL},
    CODEC_METHOD("copy_marks", codec_copy_marks),
    CODEC_METHOD("encode_copy", codec_encode_copy),
    CODEC_METHOD("key", codec_key),
    CODEC_METHOD("change", codec_change),
    CODEC_METHOD("update", codec_update),
    CODEC_METHOD("delete", codec_delete),
    {0},
};

static PyType_Slot plan_slots[] = {
    {Py_tp_doc, "How the rows of one table are encoded; see schemas/codec/_compiled.pyi."},
    {Py_tp_new, plan_new},
    {Py_tp_dealloc, plan_dealloc},
    {Py_tp_traverse, plan_traverse},
    {Py_tp_clear, plan_clear},
    {Py_tp_methods, plan_methods},
    {0, NULL},
};

PyType_Spec codec_plan_spec = {
    .name = "schemas.codec._compiled.Plan",
    .basicsize = sizeof(Plan),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = plan_slots,
};
