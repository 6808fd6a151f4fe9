/* Takes from libpq lines of COPY, without an object for each and without the GIL, and messages of a replication stream.
 *
 * libpq's functions are called by address: nothing here is linked with libpq, of which only psycopg's copy knows the
 * connection (infra/postgres/libpq.py). */

#include "buffer.h"

#define LIBPQ_BLOCK (1 << 20) /* bytes taken without the GIL before signals get a chance */

typedef struct {
    int (*get_copy_data)(void *connection, char **line, int async);
    int (*consume_input)(void *connection);
    void (*freemem)(void *line);
    void *connection;
} Libpq;

typedef struct {
    Py_ssize_t room, longest; /* a negative room: every line is discarded */
    int some;                 /* a line has been taken before: another one has to fit */
} Limits;

/* What comes next; a positive number is the size of a line that exceeds a limit, and was discarded. */
enum { COPY_END = 0, COPY_MORE = -1, COPY_WAIT = -2, COPY_LOST = -3 };

typedef struct {
    Buffer lines;
    char *last; /* the line that completed the block, still libpq's: a large one is not copied twice */
    Py_ssize_t last_size, rows, next;
} Taken;

static Outcome take_lines(const Libpq *libpq, const Limits *limits, Taken *taken)
{
    size_t seen = 0;
    int consumed = 0;
    while (seen < LIBPQ_BLOCK) {
        char *line = NULL;
        int size = libpq->get_copy_data(libpq->connection, &line, 1);
        if (size < 0) { /* its end, or an error: the result says which */
            taken->next = COPY_END;
            return DONE;
        }
        if (size == 0) {
            if (consumed || !libpq->consume_input(libpq->connection)) {
                taken->next = consumed ? COPY_WAIT : COPY_LOST;
                return DONE;
            }
            consumed = 1;
            continue;
        }
        consumed = 0;
        seen += (size_t)size;
        if (limits->room >= 0) {
            int full = (limits->some || taken->rows > 0) && size > limits->room - (Py_ssize_t)taken->lines.size;
            if (full || size > limits->longest) {
                libpq->freemem(line);
                taken->next = size;
                return DONE;
            }
            taken->rows++;
            if (seen >= LIBPQ_BLOCK) {
                taken->last = line;
                taken->last_size = size;
                break;
            }
            if (put(&taken->lines, line, (size_t)size) != DONE) {
                libpq->freemem(line);
                return NO_MEMORY;
            }
        }
        libpq->freemem(line);
    }
    taken->next = COPY_MORE;
    return DONE;
}

static PyObject *joined(const Taken *taken)
{
    PyObject *lines = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)taken->lines.size + taken->last_size);
    if (lines == NULL)
        return NULL;
    char *to = PyBytes_AS_STRING(lines);
    if (taken->lines.size > 0)
        memcpy(to, taken->lines.data, taken->lines.size);
    if (taken->last != NULL)
        memcpy(to + taken->lines.size, taken->last, (size_t)taken->last_size);
    return lines;
}

static int read_address(PyObject *from, void *to)
{
    void *address = PyLong_AsVoidPtr(from);
    if (address == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "an address is 0");
        return -1;
    }
    memcpy(to, &address, sizeof address); /* C has no conversion from an object's address to a function's */
    return 0;
}

static int read_functions(PyObject *functions, PyObject *connection, Libpq *libpq)
{
    if (!PyTuple_Check(functions) || PyTuple_GET_SIZE(functions) != 3) {
        PyErr_SetString(PyExc_TypeError, "the addresses are not three");
        return -1;
    }
    if (read_address(PyTuple_GET_ITEM(functions, 0), &libpq->get_copy_data) < 0 ||
        read_address(PyTuple_GET_ITEM(functions, 1), &libpq->consume_input) < 0 ||
        read_address(PyTuple_GET_ITEM(functions, 2), &libpq->freemem) < 0)
        return -1;
    return read_address(connection, &libpq->connection);
}

/* libpq_lines((PQgetCopyData, PQconsumeInput, PQfreemem), connection, room, longest, some) -> (lines, rows, next) */
PyObject *codec_libpq_lines(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "libpq_lines takes three addresses, a connection, and three limits");
        return NULL;
    }
    Libpq libpq = {0};
    if (read_functions(arguments[0], arguments[1], &libpq) < 0)
        return NULL;
    Limits limits = {PyLong_AsSsize_t(arguments[2]), PyLong_AsSsize_t(arguments[3]), PyObject_IsTrue(arguments[4])};
    if (PyErr_Occurred())
        return NULL;
    Taken taken = {0};
    Outcome outcome;
    Py_BEGIN_ALLOW_THREADS
    outcome = take_lines(&libpq, &limits, &taken);
    Py_END_ALLOW_THREADS
    PyObject *lines = outcome == DONE ? joined(&taken) : PyErr_NoMemory();
    release(&taken.lines);
    if (taken.last != NULL)
        libpq.freemem(taken.last);
    return lines == NULL ? NULL : Py_BuildValue("(Nnn)", lines, taken.rows, taken.next);
}

enum { DATA_START = 25 }; /* in a frame of type XLogData, after its type, two positions and a time */

static uint64_t read_position(const char *from)
{
    uint64_t position = 0;
    for (int index = 0; index < 8; index++)
        position = position << 8 | (unsigned char)from[index];
    return position;
}

/* libpq_messages((PQgetCopyData, PQconsumeInput, PQfreemem), connection, most, room) -> (messages, end, used, size, other)
 *
 * It waits for nothing, and reads nothing: libpq's buffer has what it takes. A notice calls psycopg's function, which takes
 * the GIL if it has to. */
PyObject *codec_libpq_messages(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "libpq_messages takes three addresses, a connection, and two limits");
        return NULL;
    }
    Libpq libpq = {0};
    if (read_functions(arguments[0], arguments[1], &libpq) < 0)
        return NULL;
    Py_ssize_t most = PyLong_AsSsize_t(arguments[2]), room = PyLong_AsSsize_t(arguments[3]), used = 0;
    PyObject *messages = PyErr_Occurred() ? NULL : PyList_New(0), *other = NULL;
    uint64_t end = 0;
    int size = 1;
    while (messages != NULL && other == NULL && PyList_GET_SIZE(messages) < most && used < room) {
        char *frame = NULL;
        size = libpq.get_copy_data(libpq.connection, &frame, 1);
        if (size <= 0)
            break;
        used += size;
        int data = frame[0] == 'w' && size > DATA_START;
        PyObject *taken = data ? as_bytes(frame + DATA_START, (size_t)(size - DATA_START)) : as_bytes(frame, (size_t)size);
        if (data)
            end = read_position(frame + 9);
        libpq.freemem(frame);
        if (taken != NULL && !data)
            other = taken;
        else {
            if (taken == NULL || PyList_Append(messages, taken) < 0)
                Py_CLEAR(messages);
            Py_XDECREF(taken);
        }
    }
    if (messages == NULL)
        return NULL;
    return Py_BuildValue("(NKniN)", messages, (unsigned long long)end, used, size, other != NULL ? other : Py_NewRef(Py_None));
}
