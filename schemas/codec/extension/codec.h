/* What all of the extension's files share: the module's state, and its types and functions.
 *
 * Nothing here is visible outside the extension, which is compiled with -fvisibility=hidden; only PyInit__compiled is. All
 * objects are in the state: each interpreter, and each import of the module, has its own. */

#ifndef CODEC_H
#define CODEC_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    PyTypeObject *plan_type, *row_type, *reader_type;
    PyObject *unchanged;                                  /* schemas.events.UNCHANGED */
    PyObject *error, *topic, *partition, *offset, *key, *value; /* the names of a record's methods */
} CodecState;

/* ODD: left to the Python codec, which encodes it or raises the error.
 * APART: a null was written, and the value's text belongs into the event's field `exact`. */
typedef enum { DONE, ODD, NO_MEMORY, APART } Outcome;

#define CODEC_HEADER_BYTES 5 /* in Confluent's wire format, see schemas/wire.py */

#define CODEC_METHOD(name, function) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL}

extern PyType_Spec codec_plan_spec, codec_row_spec, codec_reader_spec;

/* Functions of the module; see schemas/codec/_compiled.pyi. */
PyObject *codec_copy_data(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *codec_differences(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *codec_libpq_lines(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *codec_libpq_messages(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *codec_mentions(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *codec_scatter(PyObject *module, PyObject *const *arguments, Py_ssize_t count);
PyObject *codec_sift(PyObject *module, PyObject *arguments);
PyObject *codec_table_marks(PyObject *module, PyObject *arguments);
PyObject *codec_topic_marks(PyObject *module, PyObject *arguments);
PyObject *codec_tuple_row(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

#endif
