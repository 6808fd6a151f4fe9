/* Extracts lines of COPY from the server's messages, and encodes them as keys and values.
 *
 * A chunk with a line that C does not handle goes to the Python codec as a whole. */

#include "marks.h"
#include "plan.h"

#define CODEC_BLOCK (1 << 20) /* bytes encoded without the GIL before their objects are created */
#define CODEC_SHORT 16        /* bytes of a field that are read one by one before eight at a time */
#define CODEC_PIECE (4 << 20) /* step by which a buffer shrinks while its objects are created */

/* --- lines of COPY's text format --- */

typedef struct {
    const char *text;
    size_t size, escapes;   /* the raw field, and the number of its escapes */
    size_t cell, cell_size; /* its encoded cell, from the start of the values */
    int apart;              /* whether its text belongs into `exact` */
} Span;

typedef struct {
    size_t value, key; /* the ends of a row's value and key */
} Ends;

#define REPEATED(byte) (UINT64_C(0x0101010101010101) * (unsigned char)(byte))

/* Not 0 if one of the eight bytes is `byte`. */
static uint64_t contains(uint64_t bytes, char byte)
{
    uint64_t zero = bytes ^ REPEATED(byte);
    return (zero - REPEATED(1)) & ~zero & REPEATED(0x80);
}

/* Skips eight bytes at a time while none of them ends a field or begins an escape. */
static const char *skip_plain(const char *at, const char *end)
{
    for (; end - at >= 8; at += 8) {
        uint64_t bytes;
        memcpy(&bytes, at, sizeof bytes);
        if (contains(bytes, '\t') | contains(bytes, '\n') | contains(bytes, '\\'))
            break;
    }
    return at;
}

/* Reads a field up to `stop`; returns the position after it, NULL if another byte, or none, ends the field. */
static const char *read_field(const char *at, const char *end, char stop, Span *span)
{
    span->text = at;
    span->escapes = 0;
    while (at < end) {
        const char *some = end - at > CODEC_SHORT ? at + CODEC_SHORT : end;
        for (; at < some; at++) {
            char byte = *at;
            if (byte > '\\')
                continue;
            if (byte == '\t' || byte == '\n') {
                span->size = (size_t)(at - span->text);
                return byte == stop ? at + 1 : NULL;
            }
            if (byte == '\\') {
                span->escapes++;
                if (++at == end || *at == '\n' || *at == '\t')
                    return NULL;
            }
        }
        at = skip_plain(at, end); /* not before: most fields are short, and their bytes are faster one by one */
    }
    return NULL;
}

static Outcome put_unescaped(Buffer *out, const Span *span)
{
    size_t size = span->size - span->escapes;
    if (put_byte(out, 2) != DONE || put_long(out, (int64_t)size) != DONE || reserve(out, size) != DONE)
        return NO_MEMORY;
    char *to = out->data + out->size;
    const char *at = span->text, *end = at + span->size;
    for (;;) {
        const char *escape = memchr(at, '\\', (size_t)(end - at));
        size_t plain = (size_t)((escape == NULL ? end : escape) - at);
        memcpy(to, at, plain);
        to += plain;
        if (escape == NULL)
            break;
        switch (escape[1]) { /* read_field checked that a byte follows */
        case 'b': *to++ = '\b'; break;
        case 'f': *to++ = '\f'; break;
        case 'n': *to++ = '\n'; break;
        case 'r': *to++ = '\r'; break;
        case 't': *to++ = '\t'; break;
        case 'v': *to++ = '\v'; break;
        case '\\': *to++ = '\\'; break;
        default: return ODD;
        }
        at = escape + 2;
    }
    out->size += size;
    return DONE;
}

/* The field `exact` of a row with `apart` texts in it. */
static Outcome put_exact(const Plan *plan, Buffer *values, const Span *spans, int64_t apart)
{
    if (apart == 0)
        return put_byte(values, 0);
    Outcome outcome = put(values, "\2\0", 2); /* no texts of an old row */
    if (outcome == DONE)
        outcome = put_long(values, apart);
    for (Py_ssize_t index = 0; outcome == DONE && index < plan->width; index++)
        if (spans[index].apart)
            outcome = put_exact_text(plan, values, index, spans[index].text, spans[index].size);
    return outcome == DONE ? put_byte(values, 0) : outcome;
}

/* Encodes the line at `*at` and moves `*at` after it; `spans` has an entry per column. */
static Outcome encode_line(const Plan *plan, const char **at, const char *end, Buffer *values, Buffer *keys,
                           Span *spans)
{
    const char *next = *at;
    Outcome outcome = DONE;
    int64_t apart = 0;
    for (Py_ssize_t index = 0; index < plan->width; index++) {
        const Column *column = &plan->columns[index];
        Span *span = &spans[index];
        next = read_field(next, end, index == plan->width - 1 ? '\n' : '\t', span);
        if (next == NULL)
            return ODD;
        span->cell = values->size;
        if (span->escapes == 0)
            outcome = codec_put_value(values, column, span->text, span->size);
        else if (span->size == 2 && span->text[1] == 'N')
            outcome = column->key ? ODD : put_byte(values, 0);
        else
            outcome = column->kind == KIND_TEXT ? put_unescaped(values, span) : ODD;
        span->apart = outcome == APART;
        if (span->apart)
            apart++;
        else if (outcome != DONE)
            return outcome;
        span->cell_size = values->size - span->cell;
    }
    outcome = put_exact(plan, values, spans, apart);
    if (outcome == DONE)
        outcome = put_object(keys, plan->header);
    for (Py_ssize_t part = 0; outcome == DONE && part < plan->keys; part++) {
        const Span *span = &spans[plan->key[part]];
        if (plan->columns[plan->key[part]].partial) /* text in a key, whether the row has the value or not */
            outcome = put_string(keys, span->text, span->size);
        else
            outcome = put(keys, values->data + span->cell + 1, span->cell_size - 1);
    }
    *at = next;
    return outcome;
}

/* Encodes lines until a block is full or no lines are left. */
static Outcome encode_lines(const Plan *plan, const char **at, const char *end, Buffer *values, Buffer *keys,
                            Buffer *ends, Span *spans)
{
    while (*at < end && values->size < CODEC_BLOCK) {
        Outcome outcome = encode_line(plan, at, end, values, keys, spans);
        if (outcome != DONE)
            return outcome;
        Ends here = {values->size, keys->size};
        if (put(ends, (const char *)&here, sizeof here) != DONE)
            return NO_MEMORY;
    }
    return DONE;
}

/* Appends a key. */
static int append_key(PyObject *list, const char *data, size_t size)
{
    PyObject *bytes = as_bytes(data, size);
    int failed = bytes == NULL || PyList_Append(list, bytes) != 0;
    Py_XDECREF(bytes);
    return failed;
}

/* A new bytes object that begins with `prefix`, with room for `size` bytes from `*rest` on; NULL with an exception. */
static PyObject *prefixed(PyObject *prefix, size_t size, char **rest)
{
    size_t before = (size_t)PyBytes_GET_SIZE(prefix);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(before + size));
    if (bytes != NULL) {
        memcpy(PyBytes_AS_STRING(bytes), PyBytes_AS_STRING(prefix), before);
        *rest = PyBytes_AS_STRING(bytes) + before;
    }
    return bytes;
}

/* Appends a value: the prefix is copied only here, not into the buffer of rows. */
static int append_value(PyObject *list, PyObject *prefix, const char *data, size_t size)
{
    char *rest;
    PyObject *bytes = prefixed(prefix, size, &rest);
    if (bytes == NULL)
        return 1;
    memcpy(rest, data, size);
    int failed = PyList_Append(list, bytes) != 0;
    Py_DECREF(bytes);
    return failed;
}

/* Appends a whole buffer, which shrinks from its end meanwhile: a large row is not in memory twice. */
static int append_all(PyObject *list, PyObject *prefix, Buffer *from)
{
    char *rest;
    PyObject *bytes = prefixed(prefix, from->size, &rest);
    if (bytes == NULL)
        return 1;
    while (from->size > 0) {
        size_t left = from->size > CODEC_PIECE ? from->size - CODEC_PIECE : 0;
        memcpy(rest + left, from->data + left, from->size - left);
        from->size = left;
        char *data = PyMem_RawRealloc(from->data, left > 0 ? left : 1);
        if (data != NULL) {
            from->data = data;
            from->capacity = left;
        }
    }
    int failed = PyList_Append(list, bytes) != 0;
    Py_DECREF(bytes);
    return failed;
}

/* encode_copy(data, prefix) -> (keys, values) */
PyObject *codec_encode_copy(Plan *plan, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_CheckExact(arguments[0]) || !PyBytes_CheckExact(arguments[1]))
        return in_python(plan, COPY, arguments, count);
    const char *at = PyBytes_AS_STRING(arguments[0]);
    const char *end = at + PyBytes_GET_SIZE(arguments[0]);
    Buffer values = {0}, keys = {0}, ends = {0};
    Outcome outcome = NO_MEMORY;
    int failed = 0;
    PyObject *key_list = PyList_New(0), *value_list = PyList_New(0);
    Span *spans = PyMem_RawCalloc((size_t)plan->width, sizeof *spans);
    if (key_list == NULL || value_list == NULL || spans == NULL)
        goto out;
    outcome = DONE;
    while (at < end && outcome == DONE && !failed) {
        values.size = keys.size = ends.size = 0;
        if (plan->floating)
            outcome = encode_lines(plan, &at, end, &values, &keys, &ends, spans);
        else {
            Py_BEGIN_ALLOW_THREADS
            outcome = encode_lines(plan, &at, end, &values, &keys, &ends, spans);
            Py_END_ALLOW_THREADS
        }
        Ends from = {0, 0}, upto;
        for (size_t row = 0; outcome == DONE && !failed && row < ends.size; row += sizeof upto) {
            memcpy(&upto, ends.data + row, sizeof upto);
            int alone = ends.size == sizeof upto && values.size > CODEC_PIECE;
            failed = append_key(key_list, keys.data + from.key, upto.key - from.key) ||
                     (alone ? append_all(value_list, arguments[1], &values)
                            : append_value(value_list, arguments[1], values.data + from.value, upto.value - from.value));
            from = upto;
        }
    }
out:
    release(&values);
    release(&keys);
    release(&ends);
    PyMem_RawFree(spans);
    PyObject *result = NULL;
    if (outcome == DONE && !failed)
        result = PyTuple_Pack(2, key_list, value_list);
    Py_XDECREF(key_list);
    Py_XDECREF(value_list);
    if (outcome == ODD)
        return in_python(plan, COPY, arguments, count);
    return outcome == NO_MEMORY ? PyErr_NoMemory() : result;
}

/* Encodes all lines, each over the one before, and appends their marks. */
static Outcome mark_lines(const Plan *plan, const char *at, const char *end, const unsigned char *secret,
                          uint64_t place, Buffer *marks)
{
    Buffer row = {0}, key = {0};
    Span *spans = PyMem_RawCalloc((size_t)plan->width, sizeof *spans);
    Outcome outcome = spans == NULL ? NO_MEMORY : DONE;
    while (outcome == DONE && at < end) {
        row.size = key.size = 0;
        outcome = encode_line(plan, &at, end, &row, &key, spans);
        if (outcome == DONE) {
            Mark mark = codec_mark(secret, key.data + CODEC_HEADER_BYTES, key.size - CODEC_HEADER_BYTES, row.data,
                                   row.size, place);
            outcome = put(marks, (const char *)&mark, sizeof mark);
        }
    }
    release(&row);
    release(&key);
    PyMem_RawFree(spans);
    return outcome;
}

/* copy_marks(data, place, secret) -> marks; None: the lines are left to Python */
PyObject *codec_copy_marks(Plan *plan, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || !PyBytes_CheckExact(arguments[0]) || !PyBytes_CheckExact(arguments[2]) ||
        PyBytes_GET_SIZE(arguments[2]) != CODEC_SECRET_BYTES || PyBytes_GET_SIZE(plan->header) != CODEC_HEADER_BYTES) {
        PyErr_SetString(PyExc_TypeError, "copy_marks takes lines, a place and a secret");
        return NULL;
    }
    uint64_t place = PyLong_AsUnsignedLongLong(arguments[1]);
    if (place == UINT64_MAX && PyErr_Occurred())
        return NULL;
    const char *at = PyBytes_AS_STRING(arguments[0]), *end = at + PyBytes_GET_SIZE(arguments[0]);
    const unsigned char *secret = (const unsigned char *)PyBytes_AS_STRING(arguments[2]);
    Buffer marks = {0};
    Outcome outcome;
    if (plan->floating)
        outcome = mark_lines(plan, at, end, secret, place, &marks);
    else {
        Py_BEGIN_ALLOW_THREADS
        outcome = mark_lines(plan, at, end, secret, place, &marks);
        Py_END_ALLOW_THREADS
    }
    PyObject *result = NULL;
    if (outcome == DONE)
        result = as_bytes(marks.data, marks.size);
    else if (outcome == ODD)
        result = Py_NewRef(Py_None);
    else
        PyErr_NoMemory();
    release(&marks);
    return result;
}

/* --- messages with lines of COPY --- */

/* copy_data(buffer) -> (the lines of the CopyData messages at its start, their number, the bytes used) */
PyObject *codec_copy_data(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    Py_buffer view;
    if (count != 1) {
        PyErr_SetString(PyExc_TypeError, "copy_data takes a buffer");
        return NULL;
    }
    if (PyObject_GetBuffer(arguments[0], &view, PyBUF_SIMPLE) != 0)
        return NULL;
    const unsigned char *data = view.buf;
    size_t size = (size_t)view.len, at = 0;
    Py_ssize_t rows = 0;
    /* Two passes over the headers, so that the lines are copied once, into a string of the exact length. */
    while (size - at >= 5 && data[at] == 'd') {
        uint32_t length = (uint32_t)data[at + 1] << 24 | (uint32_t)data[at + 2] << 16 | (uint32_t)data[at + 3] << 8 |
                          data[at + 4];
        if (length < 4 || length > size - at - 1)
            break;
        at += 1 + (size_t)length;
        rows++;
    }
    PyObject *lines = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(at - 5 * (size_t)rows));
    if (lines != NULL) {
        char *to = PyBytes_AS_STRING(lines);
        for (size_t from = 0; from < at;) {
            size_t length = ((size_t)data[from + 1] << 24 | (size_t)data[from + 2] << 16 | (size_t)data[from + 3] << 8 |
                             data[from + 4]) - 4;
            memcpy(to, data + from + 5, length);
            to += length;
            from += 5 + length;
        }
    }
    PyBuffer_Release(&view);
    return lines == NULL ? NULL : Py_BuildValue("(Nnn)", lines, rows, (Py_ssize_t)at);
}
