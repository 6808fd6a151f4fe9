/* Takes lines of COPY from libpq, without an object for each and without the GIL.
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

/* libpq_lines((PQgetCopyData, PQconsumeInput, PQfreemem), connection, room, longest, some) -> (lines, rows, next) */
PyObject *codec_libpq_lines(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 5 || !PyTuple_Check(arguments[0]) || PyTuple_GET_SIZE(arguments[0]) != 3) {
        PyErr_SetString(PyExc_TypeError, "libpq_lines takes three addresses, a connection, and three limits");
        return NULL;
    }
    Libpq libpq = {0};
    if (read_address(PyTuple_GET_ITEM(arguments[0], 0), &libpq.get_copy_data) < 0 ||
        read_address(PyTuple_GET_ITEM(arguments[0], 1), &libpq.consume_input) < 0 ||
        read_address(PyTuple_GET_ITEM(arguments[0], 2), &libpq.freemem) < 0 ||
        read_address(arguments[1], &libpq.connection) < 0)
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
