/* The module schemas.codec._compiled; see schemas/codec/_compiled.pyi.
 *
 * It is initialised in phases and has no static objects: it may be imported in several interpreters, and again. */

#include "codec.h"

#define CODEC_VERSION 10 /* schemas/codec/implementation.py accepts no other: a build may be older than the checkout */

static PyMethodDef module_methods[] = {
    CODEC_METHOD("copy_data", codec_copy_data),
    CODEC_METHOD("differences", codec_differences),
    CODEC_METHOD("libpq_lines", codec_libpq_lines),
    CODEC_METHOD("libpq_messages", codec_libpq_messages),
    CODEC_METHOD("mentions", codec_mentions),
    CODEC_METHOD("scatter", codec_scatter),
    {"sift", codec_sift, METH_VARARGS, NULL},
    {"table_marks", codec_table_marks, METH_VARARGS, NULL},
    {"topic_marks", codec_topic_marks, METH_VARARGS, NULL},
    CODEC_METHOD("tuple_row", codec_tuple_row),
    {0},
};

static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type)
{
    *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *type == NULL ? -1 : PyModule_AddType(module, *type);
}

static int name_method(PyObject **name, const char *text)
{
    *name = PyUnicode_InternFromString(text);
    return *name == NULL ? -1 : 0;
}

static int module_exec(PyObject *module)
{
    CodecState *state = PyModule_GetState(module);
    PyObject *events = PyImport_ImportModule("schemas.events");
    if (events == NULL)
        return -1;
    state->unchanged = PyObject_GetAttrString(events, "UNCHANGED");
    Py_DECREF(events);
    if (state->unchanged == NULL || name_method(&state->error, "error") < 0 || name_method(&state->topic, "topic") < 0 ||
        name_method(&state->partition, "partition") < 0 || name_method(&state->offset, "offset") < 0 ||
        name_method(&state->key, "key") < 0 || name_method(&state->value, "value") < 0)
        return -1;
    if (add_type(module, &codec_plan_spec, &state->plan_type) < 0 ||
        add_type(module, &codec_row_spec, &state->row_type) < 0 ||
        add_type(module, &codec_reader_spec, &state->reader_type) < 0)
        return -1;
    return PyModule_AddIntConstant(module, "VERSION", CODEC_VERSION);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    CodecState *state = PyModule_GetState(module);
    Py_VISIT(state->plan_type);
    Py_VISIT(state->row_type);
    Py_VISIT(state->reader_type);
    Py_VISIT(state->unchanged);
    return 0;
}

static int module_clear(PyObject *module)
{
    CodecState *state = PyModule_GetState(module);
    Py_CLEAR(state->plan_type);
    Py_CLEAR(state->row_type);
    Py_CLEAR(state->reader_type);
    Py_CLEAR(state->unchanged);
    Py_CLEAR(state->error);
    Py_CLEAR(state->topic);
    Py_CLEAR(state->partition);
    Py_CLEAR(state->offset);
    Py_CLEAR(state->key);
    Py_CLEAR(state->value);
    return 0;
}

static void module_free(void *module)
{
    module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "schemas.codec._compiled",
    .m_doc = "Rows to Avro, compiled; see schemas/codec/implementation.py.",
    .m_size = sizeof(CodecState),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__compiled(void)
{
    return PyModuleDef_Init(&module);
}
