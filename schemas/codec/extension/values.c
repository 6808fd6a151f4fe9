/* Encodes a value of PostgreSQL's text as Avro, as schemas/codec/values.py does, for texts that C handles.
 *
 * Only `put_floating` needs the interpreter. */

#include "values.h"

static Outcome put_branch_text(Buffer *out, const char *text, size_t size)
{
    return put_byte(out, 2) == DONE ? put_string(out, text, size) : NO_MEMORY;
}

static Outcome put_apart(Buffer *out)
{
    return put_byte(out, 0) == DONE ? APART : NO_MEMORY;
}

static Outcome put_branch_long(Buffer *out, int64_t number)
{
    return put_byte(out, 2) == DONE ? put_long(out, number) : NO_MEMORY;
}

static int is_digit(char byte)
{
    return byte >= '0' && byte <= '9';
}

static int equals(const char *text, size_t size, const char *other)
{
    return size == strlen(other) && memcmp(text, other, size) == 0;
}

static Outcome put_integer(Buffer *out, const Column *column, const char *text, size_t size)
{
    size_t at = size > 0 && text[0] == '-';
    uint64_t number = 0;
    if (size - at < 1 || size - at > 19)
        return ODD; /* 19 digits fit 64 bits without a sign */
    for (size_t i = at; i < size; i++) {
        if (!is_digit(text[i]))
            return ODD;
        number = number * 10 + (uint64_t)(text[i] - '0');
    }
    int64_t value;
    if (at) {
        if (number > (uint64_t)INT64_MAX + 1)
            return ODD;
        value = number > (uint64_t)INT64_MAX ? INT64_MIN : -(int64_t)number;
    }
    else {
        if (number > (uint64_t)INT64_MAX)
            return ODD;
        value = (int64_t)number;
    }
    return value < column->low || value > column->high ? ODD : put_branch_long(out, value);
}

static size_t digits_from(const char *text, size_t size, size_t at)
{
    size_t end = at;
    while (end < size && is_digit(text[end]))
        end++;
    return end - at;
}

/* -?\d+(\.\d+)?(e[+-]?\d+)? or a name; PyOS_string_to_double accepts more, which PostgreSQL never writes. */
static int is_floating(const char *text, size_t size)
{
    if (equals(text, size, "NaN"))
        return 1;
    size_t at = size > 0 && text[0] == '-', more;
    if (equals(text + at, size - at, "Infinity"))
        return 1;
    if ((more = digits_from(text, size, at)) == 0)
        return 0;
    at += more;
    if (at < size && text[at] == '.') {
        if ((more = digits_from(text, size, at + 1)) == 0)
            return 0;
        at += 1 + more;
    }
    if (at < size && text[at] == 'e') {
        at++;
        if (at < size && (text[at] == '+' || text[at] == '-'))
            at++;
        if ((more = digits_from(text, size, at)) == 0)
            return 0;
        at += more;
    }
    return at == size;
}

/* Needs the GIL. */
static Outcome put_floating(Buffer *out, const Column *column, const char *text, size_t size)
{
    char copy[64];
    int width = column->kind == KIND_FLOAT ? 4 : 8;
    if (size >= sizeof copy || !is_floating(text, size))
        return ODD;
    memcpy(copy, text, size);
    copy[size] = 0;
    double number = PyOS_string_to_double(copy, NULL, NULL);
    if (number == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        return ODD;
    }
    if (put_byte(out, 2) != DONE || reserve(out, 8) != DONE)
        return NO_MEMORY;
    char *to = out->data + out->size;
    if ((width == 4 ? PyFloat_Pack4(number, to, 1) : PyFloat_Pack8(number, to, 1)) != 0) {
        PyErr_Clear();
        return ODD;
    }
    out->size += (size_t)width;
    return DONE;
}

static Outcome put_uuid(Buffer *out, const char *text, size_t size)
{
    if (size != 36)
        return ODD;
    for (size_t i = 0; i < size; i++) {
        int dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (dash ? text[i] != '-' : !(is_digit(text[i]) || (text[i] >= 'a' && text[i] <= 'f')))
            return ODD;
    }
    return put_branch_text(out, text, size);
}

/* The two digits at `text` as a number of at most `most`; -1 otherwise. */
static int two_digits(const char *text, int most)
{
    if (!is_digit(text[0]) || !is_digit(text[1]))
        return -1;
    int number = (text[0] - '0') * 10 + (text[1] - '0');
    return number <= most ? number : -1;
}

/* Days since 1970 of a day in the years 1 to 9999 (proleptic Gregorian, as Python's date has it). */
static int64_t days_since_1970(int year, int month, int day)
{
    year -= month <= 2;
    int era = year / 400, of_era = year % 400;
    int of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return (int64_t)era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static int days_in(int year, int month)
{
    static const char days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    return days[month - 1] + (month == 2 && leap);
}

/* Reads YYYY-MM-DD with a year of 4 to 7 digits; returns its length, 0 if there is none. A year of more than four digits
 * is not parsed further: `far` means that its text is kept apart. */
static size_t read_date(const char *text, size_t size, int64_t *days, int *far)
{
    size_t year_digits = digits_from(text, size, 0);
    if (year_digits < 4 || year_digits > 7 || size < year_digits + 6)
        return 0;
    const char *rest = text + year_digits;
    int month = two_digits(rest + 1, 12), day = two_digits(rest + 4, 31);
    if (rest[0] != '-' || rest[3] != '-' || month < 1 || day < 1)
        return 0;
    *far = year_digits > 4;
    int year = 0;
    for (size_t i = 0; i < 4; i++)
        year = year * 10 + (text[i] - '0');
    /* INT64_MIN: not a day of the calendar, an error unless its text is kept apart. */
    *days = 0;
    if (!*far)
        *days = year < 1 || day > days_in(year, month) ? INT64_MIN : days_since_1970(year, month, day);
    return year_digits + 6;
}

/* Reads HH:MM:SS with up to six decimals; returns its length, 0 if there is none. */
static size_t read_clock(const char *text, size_t size, int64_t *micros)
{
    if (size < 8 || text[2] != ':' || text[5] != ':')
        return 0;
    int hour = two_digits(text, 23), minute = two_digits(text + 3, 59), second = two_digits(text + 6, 59);
    if (hour < 0 || minute < 0 || second < 0)
        return 0;
    int64_t whole = ((int64_t)hour * 60 + minute) * 60 + second;
    size_t end = 8;
    int64_t fraction = 0;
    if (size > 8 && text[8] == '.') {
        size_t decimals = digits_from(text, size, 9);
        if (decimals < 1 || decimals > 6)
            return 0;
        for (size_t i = 0; i < 6; i++)
            fraction = fraction * 10 + (i < decimals ? text[9 + i] - '0' : 0);
        end = 9 + decimals;
    }
    *micros = whole * 1000000 + fraction;
    return end;
}

static int is_infinity(const char *text, size_t size)
{
    return equals(text, size, "infinity") || equals(text, size, "-infinity");
}

static Outcome put_date(Buffer *out, const char *text, size_t size)
{
    int64_t days;
    int far;
    if (is_infinity(text, size))
        return put_apart(out);
    size_t end = read_date(text, size, &days, &far);
    if (end == 0)
        return ODD;
    if (equals(text + end, size - end, " BC") || (far && end == size))
        return put_apart(out);
    return end != size || days == INT64_MIN ? ODD : put_branch_long(out, days);
}

static Outcome put_time(Buffer *out, const char *text, size_t size)
{
    int64_t micros;
    if (equals(text, size, "24:00:00"))
        return put_apart(out);
    return size == 0 || read_clock(text, size, &micros) != size ? ODD : put_branch_long(out, micros);
}

static Outcome put_timestamp(Buffer *out, const Column *column, const char *text, size_t size)
{
    int64_t days, micros;
    int far;
    if (is_infinity(text, size))
        return put_apart(out);
    size_t at = read_date(text, size, &days, &far);
    if (at == 0 || at == size || text[at] != ' ')
        return ODD;
    at++;
    size_t clock = read_clock(text + at, size - at, &micros);
    if (clock == 0)
        return ODD;
    at += clock;
    if (column->kind == KIND_TIMESTAMPTZ) {
        if (size - at < 3 || memcmp(text + at, "+00", 3) != 0)
            return ODD;
        at += 3;
    }
    if (equals(text + at, size - at, " BC") || (far && at == size))
        return put_apart(out);
    return at != size || days == INT64_MIN ? ODD : put_branch_long(out, days * INT64_C(86400000000) + micros);
}

#define CODEC_MOST_DIGITS 1000 /* the maximum of a declared precision */

/* Avro's decimal: the digits without their point as a big-endian two's complement number. Its length is Python's
 * (bit_length + 8) / 8, which for -128 and similar numbers is one byte more than the shortest. */
static Outcome put_decimal(Buffer *out, const Column *column, const char *text, size_t size)
{
    uint32_t limbs[CODEC_MOST_DIGITS / 9 + 2]; /* the lowest first; nine digits fit in one */
    size_t used = 0, count = 0, decimals = 0, seen = 0;
    uint32_t group = 0, scale = 1;
    int point = 0, significant = 0;
    if (equals(text, size, "NaN") || equals(text, size, "Infinity") || equals(text, size, "-Infinity"))
        return put_apart(out);
    size_t at = size > 0 && text[0] == '-';
    for (size_t i = at; i <= size; i++) {
        int last = i == size;
        if (!last && text[i] == '.') {
            if (point || i == at)
                return ODD;
            point = 1;
            continue;
        }
        if (!last) {
            if (!is_digit(text[i]))
                return ODD;
            seen++;
            decimals += (size_t)point;
            significant |= text[i] != '0';
            if (!significant)
                continue;
            if (++count > CODEC_MOST_DIGITS)
                return ODD;
            group = group * 10 + (uint32_t)(text[i] - '0');
            scale *= 10;
        }
        if (scale == 1000000000 || (last && scale > 1)) {
            uint64_t carry = group;
            for (size_t limb = 0; limb < used; limb++) {
                carry += (uint64_t)limbs[limb] * scale;
                limbs[limb] = (uint32_t)carry;
                carry >>= 32;
            }
            if (carry)
                limbs[used++] = (uint32_t)carry;
            group = 0;
            scale = 1;
        }
    }
    if (seen == 0 || decimals != (size_t)column->scale || (point && decimals == 0) || count > (size_t)column->precision)
        return ODD;
    size_t bits = used == 0 ? 0 : (used - 1) * 32;
    for (uint32_t top = used == 0 ? 0 : limbs[used - 1]; top; top >>= 1)
        bits++;
    size_t width = (bits + 8) / 8;
    if (put_branch_long(out, (int64_t)width) != DONE || reserve(out, width) != DONE)
        return NO_MEMORY;
    unsigned carry = 1;
    for (size_t byte = 0; byte < width; byte++) {
        unsigned value = byte / 4 < used ? (limbs[byte / 4] >> (byte % 4 * 8)) & 0xFF : 0;
        if (at) { /* negative: two's complement */
            value = (value ^ 0xFF) + carry;
            carry = value >> 8;
        }
        out->data[out->size + width - 1 - byte] = (char)(value & 0xFF);
    }
    out->size += width;
    return DONE;
}

Outcome codec_put_value(Buffer *out, const Column *column, const char *text, size_t size)
{
    switch (column->kind) {
    case KIND_BOOLEAN:
        if (size != 1 || (text[0] != 't' && text[0] != 'f'))
            return ODD;
        return put(out, text[0] == 't' ? "\2\1" : "\2\0", 2);
    case KIND_INT:
    case KIND_LONG:
        return put_integer(out, column, text, size);
    case KIND_FLOAT:
    case KIND_DOUBLE:
        return put_floating(out, column, text, size);
    case KIND_TEXT:
        return put_branch_text(out, text, size);
    case KIND_UUID:
        return put_uuid(out, text, size);
    case KIND_DATE:
        return put_date(out, text, size);
    case KIND_TIME:
        return put_time(out, text, size);
    case KIND_TIMESTAMP:
    case KIND_TIMESTAMPTZ:
        return put_timestamp(out, column, text, size);
    case KIND_DECIMAL:
        return put_decimal(out, column, text, size);
    default:
        return ODD;
    }
}
