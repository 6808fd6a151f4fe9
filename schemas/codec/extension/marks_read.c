/* Makes marks of a topic's records and of a table's rows: what has to be hashed is collected with the GIL, and hashed
 * without it. */

#include "marks.h"
#include "varint.h"

/* --- SipHash-1-3: a collision of two rows cannot be arranged without its secret --- */

#define ROTATED(word, by) (((word) << (by)) | ((word) >> (64 - (by))))
#define SIP_ROUND                                                                                                      \
    do {                                                                                                               \
        v0 += v1, v1 = ROTATED(v1, 13) ^ v0, v0 = ROTATED(v0, 32);                                                     \
        v2 += v3, v3 = ROTATED(v3, 16) ^ v2;                                                                           \
        v0 += v3, v3 = ROTATED(v3, 21) ^ v0;                                                                           \
        v2 += v1, v1 = ROTATED(v1, 17) ^ v2, v2 = ROTATED(v2, 32);                                                     \
    } while (0)

static uint64_t hashed(const unsigned char *secret, const char *data, size_t size)
{
    uint64_t k0, k1, word, last = (uint64_t)size << 56;
    memcpy(&k0, secret, 8);
    memcpy(&k1, secret + 8, 8);
    uint64_t v0 = k0 ^ 0x736f6d6570736575, v1 = k1 ^ 0x646f72616e646f6d, v2 = k0 ^ 0x6c7967656e657261,
             v3 = k1 ^ 0x7465646279746573;
    for (; size >= 8; data += 8, size -= 8) {
        memcpy(&word, data, 8);
        v3 ^= word;
        SIP_ROUND;
        v0 ^= word;
    }
    for (size_t byte = 0; byte < size; byte++)
        last |= (uint64_t)(unsigned char)data[byte] << (8 * byte);
    v3 ^= last;
    SIP_ROUND;
    v0 ^= last;
    v2 ^= 0xff;
    SIP_ROUND;
    SIP_ROUND;
    SIP_ROUND;
    return v0 ^ v1 ^ v2 ^ v3;
}

static uint64_t row_hash(const unsigned char *secret, const char *data, size_t size)
{
    uint64_t hash = hashed(secret, data, size);
    return hash < MARK_FIRST ? hash + MARK_FIRST : hash;
}

Mark codec_mark(const unsigned char *secret, const char *key, size_t key_size, const char *row, size_t row_size,
                uint64_t place)
{
    return (Mark){hashed(secret, key, key_size), row_hash(secret, row, row_size), place};
}

/* --- what is to be hashed --- */

/* A row from `row` on in its value; without a value a mark without a hash. */
typedef struct {
    PyObject *key, *value;
    Py_ssize_t row;
    uint64_t kind, place;
} Found;

static PyObject *marks_of(const Found *found, size_t count, const unsigned char *secret)
{
    PyObject *marks = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * sizeof(Mark)));
    if (marks == NULL)
        return NULL;
    char *to = PyBytes_AS_STRING(marks);
    Py_BEGIN_ALLOW_THREADS
    for (size_t index = 0; index < count; index++) {
        const Found *each = &found[index];
        Mark mark = {.row = each->kind, .place = each->place};
        mark.key = hashed(secret, PyBytes_AS_STRING(each->key) + CODEC_HEADER_BYTES,
                          (size_t)(PyBytes_GET_SIZE(each->key) - CODEC_HEADER_BYTES));
        if (each->value != NULL)
            mark.row = row_hash(secret, PyBytes_AS_STRING(each->value) + each->row,
                                (size_t)(PyBytes_GET_SIZE(each->value) - each->row));
        memcpy(to + index * sizeof mark, &mark, sizeof mark);
    }
    Py_END_ALLOW_THREADS
    return marks;
}

static void drop(Found *found, size_t count)
{
    for (size_t index = 0; index < count; index++) {
        Py_DECREF(found[index].key);
        Py_XDECREF(found[index].value);
    }
    PyMem_RawFree(found);
}

/* table_marks(keys, rows, place, secret) → the marks of rows as they were encoded */
PyObject *codec_table_marks(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *keys, *rows, *secret, *marks = NULL;
    unsigned long long place;
    if (!PyArg_ParseTuple(arguments, "O!O!KS", &PyList_Type, &keys, &PyList_Type, &rows, &place, &secret))
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(keys);
    if (count != PyList_GET_SIZE(rows) || PyBytes_GET_SIZE(secret) != CODEC_SECRET_BYTES) {
        PyErr_SetString(PyExc_ValueError, "a key without a row, or a secret of another length");
        return NULL;
    }
    Found *found = PyMem_RawCalloc((size_t)count + 1, sizeof *found);
    if (found == NULL)
        return PyErr_NoMemory();
    size_t taken = 0;
    for (; taken < (size_t)count; taken++) {
        PyObject *key = PyList_GET_ITEM(keys, (Py_ssize_t)taken), *row = PyList_GET_ITEM(rows, (Py_ssize_t)taken);
        if (!PyBytes_CheckExact(key) || !PyBytes_CheckExact(row) || PyBytes_GET_SIZE(key) < CODEC_HEADER_BYTES) {
            PyErr_SetString(PyExc_TypeError, "a key or a row that is no bytes");
            goto out;
        }
        found[taken] = (Found){Py_NewRef(key), Py_NewRef(row), 0, MARK_ODD, place};
    }
    marks = marks_of(found, taken, (const unsigned char *)PyBytes_AS_STRING(secret));
out:
    drop(found, taken);
    return marks;
}

/* --- a topic's records --- */

typedef struct {
    const CodecState *state;
    PyObject *ends, *reached;
    PyObject *known; /* of (the bytes of a record up to its table's name, whether its rows can be compared) */
    PyObject *learn;
    PyObject *others;
    long partition; /* that of the last record; -1: none */
    long long end, next;
    Found *found;
    size_t count;
} Reading;

/* Sets reached[partition]. */
static int note_reached(const Reading *reading)
{
    if (reading->partition < 0 || reading->end < 0)
        return 0;
    PyObject *partition = PyLong_FromLong(reading->partition), *next = PyLong_FromLongLong(reading->next);
    int failed = partition == NULL || next == NULL || PyDict_SetItem(reading->reached, partition, next) < 0;
    Py_XDECREF(partition);
    Py_XDECREF(next);
    return failed ? -1 : 0;
}

static int turn_to(Reading *reading, long partition)
{
    if (note_reached(reading) < 0)
        return -1;
    PyObject *number = PyLong_FromLong(partition);
    if (number == NULL)
        return -1;
    PyObject *end = PyDict_GetItemWithError(reading->ends, number);
    Py_DECREF(number);
    if (end == NULL && PyErr_Occurred())
        return -1;
    reading->partition = partition;
    reading->next = 0;
    reading->end = end == NULL ? -1 : PyLong_AsLongLong(end);
    return reading->end == -1 && PyErr_Occurred() ? -1 : 0;
}

static long long number_from(PyObject *record, PyObject *method)
{
    PyObject *found = PyObject_CallMethodNoArgs(record, method);
    if (found == NULL)
        return -1;
    long long number = PyLong_AsLongLong(found);
    Py_DECREF(found);
    if (number < 0 && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "a record without a place");
    return number;
}

/* Returns the entry of `known` with which the value begins, None if it is no event; borrowed, NULL with an exception. */
static PyObject *known_start(const Reading *reading, PyObject *value)
{
    for (int learned = 0;; learned = 1) {
        for (Py_ssize_t index = 0; index < PyList_GET_SIZE(reading->known); index++) {
            PyObject *each = PyList_GET_ITEM(reading->known, index);
            if (!PyTuple_Check(each) || PyTuple_GET_SIZE(each) != 2 || !PyBytes_CheckExact(PyTuple_GET_ITEM(each, 0))) {
                PyErr_SetString(PyExc_TypeError, "a start that is no bytes");
                return NULL;
            }
            PyObject *start = PyTuple_GET_ITEM(each, 0);
            Py_ssize_t size = PyBytes_GET_SIZE(start);
            if (size <= PyBytes_GET_SIZE(value) &&
                memcmp(PyBytes_AS_STRING(value), PyBytes_AS_STRING(start), (size_t)size) == 0)
                return each;
        }
        if (learned)
            return Py_None;
        PyObject *answer = PyObject_CallOneArg(reading->learn, value);
        if (answer == NULL)
            return NULL;
        Py_DECREF(answer);
    }
}

/* Returns where the row of a value begins, if it is the only one and nothing is left out; -1 if not, or if C does not
 * read the bytes; -2: the record says that the row is gone. */
static Py_ssize_t row_of(PyObject *value, Py_ssize_t start)
{
    const char *bytes = PyBytes_AS_STRING(value), *end = bytes + PyBytes_GET_SIZE(value), *at = bytes + start;
    int64_t number;
    if (at == end || (*at != 0 && *at != 2))
        return -1;
    if (*at++ == 2 && (at = take_long(at, end, &number)) == NULL) /* the transaction */
        return -1;
    if ((at = take_long(at, end, &number)) == NULL) /* its time */
        return -1;
    if (end - at > 5 && memcmp(at, "\x08true", 5) == 0)
        at += 5;
    else if (end - at > 6 && memcmp(at, "\x0a" "false", 6) == 0)
        at += 6;
    else
        return -1;
    for (int each = 0; each < 2; each++) /* the position */
        if ((at = take_long(at, end, &number)) == NULL)
            return -1;
    char op = bytes[CODEC_HEADER_BYTES + 1];
    if (op == 'd' || op == 't')
        return -2;
    if ((at = take_long(at, end, &number)) == NULL || end - at < 3 || memcmp(at, "\0\0\2", 3) != 0)
        return -1;
    return at + 3 - bytes;
}

/* Takes a record of the partition whose turn it is; -1 with an exception. */
static int take(Reading *reading, PyObject *record, uint64_t place)
{
    PyObject *key = PyObject_CallMethodNoArgs(record, reading->state->key), *value = NULL;
    if (key == NULL || (value = PyObject_CallMethodNoArgs(record, reading->state->value)) == NULL)
        goto failed;
    if (key == Py_None || (PyBytes_CheckExact(key) && PyBytes_GET_SIZE(key) <= CODEC_HEADER_BYTES)) {
        int failed = value != Py_None && PyList_Append(reading->others, record) < 0;
        Py_DECREF(key);
        Py_DECREF(value);
        return failed ? -1 : 0;
    }
    if (!PyBytes_CheckExact(key) || (value != Py_None && !PyBytes_CheckExact(value))) {
        PyErr_SetString(PyExc_TypeError, "a record whose key or value is no bytes");
        goto failed;
    }
    Found found = {.key = key, .kind = MARK_GONE, .place = place};
    if (value != Py_None) {
        PyObject *start = PyBytes_GET_SIZE(value) > CODEC_HEADER_BYTES + 1 ? known_start(reading, value) : Py_None;
        if (start == NULL)
            goto failed;
        Py_ssize_t row = -1;
        if (start != Py_None && (row = row_of(value, PyBytes_GET_SIZE(PyTuple_GET_ITEM(start, 0)))) >= 0 &&
            PyTuple_GET_ITEM(start, 1) == Py_True) {
            found.value = Py_NewRef(value);
            found.row = row;
        }
        found.kind = row == -2 ? MARK_GONE : MARK_ODD;
    }
    reading->found[reading->count++] = found;
    Py_DECREF(value);
    return 0;
failed:
    Py_XDECREF(key);
    Py_XDECREF(value);
    return -1;
}

static int take_record(Reading *reading, PyObject *record)
{
    /* By identity: a KafkaError cannot be compared with None. */
    PyObject *error = PyObject_CallMethodNoArgs(record, reading->state->error);
    if (error == NULL)
        return -1;
    Py_DECREF(error);
    if (error != Py_None)
        return PyList_Append(reading->others, record);
    long long partition = number_from(record, reading->state->partition);
    if (partition < 0)
        return -1;
    if (partition != reading->partition && turn_to(reading, (long)partition) < 0)
        return -1;
    long long offset = number_from(record, reading->state->offset);
    if (offset < 0)
        return -1;
    if (reading->end < 0)
        return 0;
    reading->next = offset < reading->end ? offset + 1 : reading->end;
    return offset < reading->end ? take(reading, record, (uint64_t)partition << 48 | (uint64_t)offset) : 0;
}

/* topic_marks(records, ends, reached, known, learn, secret) → (marks, others) */
PyObject *codec_topic_marks(PyObject *module, PyObject *arguments)
{
    PyObject *records, *secret, *marks = NULL;
    Reading reading = {.state = PyModule_GetState(module), .partition = -1, .end = -1};
    if (!PyArg_ParseTuple(arguments, "O!O!O!O!OS", &PyList_Type, &records, &PyDict_Type, &reading.ends, &PyDict_Type,
                          &reading.reached, &PyList_Type, &reading.known, &reading.learn, &secret))
        return NULL;
    if (PyBytes_GET_SIZE(secret) != CODEC_SECRET_BYTES) {
        PyErr_SetString(PyExc_ValueError, "a secret of another length");
        return NULL;
    }
    Py_ssize_t count = PyList_GET_SIZE(records);
    reading.found = PyMem_RawCalloc((size_t)count + 1, sizeof *reading.found);
    reading.others = PyList_New(0);
    if (reading.found == NULL || reading.others == NULL) {
        PyErr_NoMemory();
        goto out;
    }
    /* A record's methods may be Python code, which could change the list meanwhile. */
    for (Py_ssize_t index = 0; index < count && index < PyList_GET_SIZE(records); index++) {
        PyObject *record = Py_NewRef(PyList_GET_ITEM(records, index));
        int failed = take_record(&reading, record) < 0;
        Py_DECREF(record);
        if (failed)
            goto out;
    }
    if (note_reached(&reading) == 0)
        marks = marks_of(reading.found, reading.count, (const unsigned char *)PyBytes_AS_STRING(secret));
out:
    if (reading.found != NULL)
        drop(reading.found, reading.count);
    PyObject *result = marks == NULL ? NULL : PyTuple_Pack(2, marks, reading.others);
    Py_XDECREF(marks);
    Py_XDECREF(reading.others);
    return result;
}
