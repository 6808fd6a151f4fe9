/* (a) Snapshot, stream and barrier: how a table gets into its topic while it is written to.
 *
 * Sessions write two keys of one table. A producer copies the table a key at a time, with two workers that read at
 * moments of their own and return in any order, and follows the stream; at some moment a second producer takes over, and
 * the first, if it is not dead, goes on as a zombie. Modelled after
 * producers/snapshot/{chunk_rules,resnapshot_rules,table_snapshot,reader}.py, publish/capture.py, session/copy_phase.py and loop.py.
 *
 * Abstractions: a snapshot is the set of transactions that have ended when it is taken (which ids those are is
 * schemas/xid_snapshot.py's matter); an LSN is the number of commits before it; a chunk is one key; a re-snapshot ends
 * with the table, so heartbeats need not be written: a chunk is passed once the stream has all commits before its LSN.
 *
 * Each NO_… leaves one rule out; docs/explanation/models.md has what each is for, `make model` shows that each is needed.
 */

#ifndef NT
#define NT 3                            /* transactions, each a session of its own */
#endif
#define bit(n) (1 << (n))
#define ALL (bit(NT) - 1)

mtype:op = { update0, update1, update_both, delete1, truncate_insert0 };

typedef Transaction {
    mtype:op op;
    bool wrote;                         /* it has its row locks */
    bool logged;                        /* its commit is in the WAL, and decoded */
    bool ended;                         /* visible; its locks are gone */
    bool unpublished                    /* it wrote before the table was in the publication: not in the stream */
}
Transaction tx[NT];
byte wal[NT];                           /* the transactions in the order of their commits */
byte nwal;
bool published;
byte reading[2];                        /* a producer's ACCESS SHARE locks of the table: one for each worker that reads */

/* A row's version is its change's place in the WAL (2 * commit + ordinal), plus 2; 1 is the row of before. */
typedef Row { byte version; bool present }
Row topic[2];
bool again;                             /* a re-snapshot: the topic has rows already */

/* What is recorded in the positions topic, and each producer's own: one Kafka transaction writes all of it. */
typedef Progress {
    byte at;                            /* the stream's position: transactions passed as a whole … */
    byte ordinal;                       /* … and changes of the one after them */
    byte unseen;                        /* passed, and not known to be visible */
    byte before;                        /* what ran when the table was published */
    byte copied;                        /* the keys that are copied */
    byte judged;                        /* those of them whose chunk the stream has not passed */
    byte remembered;                    /* of a re-snapshot: the keys of the last chunk's rows */
    byte snapshot[2], lsn[2];           /* of each key's chunk */
    bool claimed
}
Progress recorded, own[2];
typedef Pending { byte version; bool present; bool any; bool emptied }
Pending waits[4];                       /* producer * 2 + key: the last record that is not committed to Kafka */
byte epoch;                             /* the transactional.id's: the producer that Kafka lets write; 0: none yet */
byte confirmed;                         /* what the slot has released */

/* What a transaction does to a key. */
#define touches(t, k) (tx[t].op == update_both || tx[t].op == truncate_insert0 \
    || (k == 0 && tx[t].op == update0) || (k == 1 && (tx[t].op == update1 || tx[t].op == delete1)))
#define leaves(t, k) (!(k == 1 && (tx[t].op == delete1 || tx[t].op == truncate_insert0)))
#define last(t, k) ((k == 1 && tx[t].op == update_both) || (k == 0 && truncates(t)) -> 1 : 0)
#define truncates(t) (tx[t].op == truncate_insert0)
#define running(t) (tx[t].wrote && !tx[t].ended)
#define excludes(t, u) (running(u) && (truncates(t) || truncates(u) || (touches(t, 0) && touches(u, 0)) \
    || (touches(t, 1) && touches(u, 1))))

/* Of no meaning between two steps. */
hidden byte i, t, k, seeing, whole, part;
hidden Row row;

/* The set of transactions that have ended, which is what a snapshot sees. */
#define ended_of(n) (tx[n].ended -> bit(n) : 0)
#if NT == 2
#define all_ended (ended_of(0) | ended_of(1))
#else
#define all_ended (ended_of(0) | ended_of(1) | ended_of(2))
#endif
#define visible(them) ((them & ~all_ended) == 0)
#define locked_whole ((running(0) && truncates(0)) || (running(1) && truncates(1)) || \
    (running(NT - 1) && truncates(NT - 1)))

/* The row of key `k` after all commits in `seeing`, and all changes before a place in the stream. */
inline find_row() {
    row.version = 1; row.present = true;
    i = 0;
    do
    :: i < nwal ->
        t = wal[i];
        if
        :: touches(t, k) && ((seeing & bit(t)) || i < whole) -> row.version = 2 * i + 2 + last(t, k); row.present = leaves(t, k)
        :: touches(t, k) && !(seeing & bit(t)) && i == whole && part > 0 && !(k == 1 && tx[t].op == update_both) ->
            row.version = 2 * i + 2; row.present = !truncates(t)
        :: else
        fi;
        i++
    :: else -> break
    od
}

proctype Session(byte me) {
    /* A row that another session has written, and not made visible, is locked; a truncate needs the table alone. */
    byte other;
    d_step {
        tx[me].op != 0 && !excludes(me, (me + 1) % NT) && !excludes(me, (me + NT - 1) % NT) &&
            !(truncates(me) && (reading[0] || reading[1]));
        tx[me].wrote = true;
        tx[me].unpublished = !published
    }
    d_step { tx[me].logged = true; wal[nwal] = me; nwal++ }
    d_step { tx[me].ended = true }
}

/* Adds a record of key `k` to producer `me`'s Kafka transaction. No key goes back in time; an event comes once. */
inline publish(me, its_version, is_present, read_again) {
    assert(epoch != me + 1 ||           /* a zombie's are looked at if they are ever committed */
        its_version > (waits[me * 2 + k].any -> waits[me * 2 + k].version : topic[k].version) ||
        (read_again && its_version == (waits[me * 2 + k].any -> waits[me * 2 + k].version : topic[k].version)));
    waits[me * 2 + k].version = its_version;
    waits[me * 2 + k].present = is_present;
    waits[me * 2 + k].any = true
}

/* Whether the event of `wal[own.at]` on key `k` is published: producers.snapshot.chunk_rules and producers.snapshot.resnapshot_rules. */
#ifdef NO_SNAPSHOT_RULE                 /* what a chunk shows is published as well */
#define shown(me, k) false
#else
#define shown(me, k) ((own[me].judged & bit(k)) && (own[me].snapshot[k] & bit(wal[own[me].at])))
#endif
#ifdef NO_DROP_UNCOPIED                 /* events of ranges to come are published as well */
#define in_copied(me, k) true
#else
#define in_copied(me, k) (own[me].copied & bit(k))
#endif
#ifdef NO_REMEMBERED_KEYS               /* a re-snapshot drops what its chunk's snapshot sees, whatever its rows were */
#define in_chunk(me, k) (own[me].copied & bit(k))
#else
#define in_chunk(me, k) (own[me].remembered & bit(k))
#endif
#ifdef NO_REREAD_RULES                  /* a re-snapshot goes by the rules of a first one */
#define by_range true
#else
#define by_range (!again)
#endif
#define publishes(me, k) (by_range -> (in_copied(me, k) && !shown(me, k)) : !(in_chunk(me, k) && shown(me, k)))

/* Forgets what the stream has passed. */
inline settle(me) {
    k = 0;
    do
    :: k < 2 ->
#ifdef NO_LSN                           /* a chunk is passed at once */
        if
#else
        if
        :: (own[me].judged & bit(k)) && own[me].at < own[me].lsn[k]
#endif
        :: else ->
            own[me].judged = own[me].judged & ~bit(k);
            own[me].remembered = own[me].remembered & ~bit(k);
            if
            :: !(own[me].judged & bit(k)) -> own[me].snapshot[k] = 0; own[me].lsn[k] = 0
            fi
        fi;
        k++
    :: else -> break
    od
}

/* One change of the stream. */
inline stream(me) {
    t = wal[own[me].at];
    if
    :: tx[t].unpublished -> own[me].at++
    :: else ->
#ifndef NO_UNSEEN_AT_BEGIN              /* it is noted when its first change is handled, not after its last */
        own[me].unseen = own[me].unseen | bit(t);
#endif
        if
        :: truncates(t) && own[me].ordinal == 0 ->
            k = 0;
            do
            :: k < 2 ->
                waits[me * 2 + k].version = 2 * own[me].at + 2;
                waits[me * 2 + k].present = false;
                waits[me * 2 + k].any = true;
                waits[me * 2 + k].emptied = true;
                k++
            :: else -> break
            od;
#ifndef NO_TRUNCATE_RULE                /* all that the table has from now on comes after it in the stream */
            own[me].copied = 3; own[me].judged = 0; own[me].remembered = 0;
            own[me].snapshot[0] = 0; own[me].snapshot[1] = 0; own[me].lsn[0] = 0; own[me].lsn[1] = 0;
#endif
            own[me].ordinal = 1
        :: else ->
            k = (tx[t].op == update1 || tx[t].op == delete1 || (tx[t].op == update_both && own[me].ordinal == 1)
                -> 1 : 0);
            if
            :: publishes(me, k) -> publish(me, 2 * own[me].at + 2 + own[me].ordinal, leaves(t, k), false)
            :: else
            fi;
            if
            :: tx[t].op == update_both && own[me].ordinal == 0 -> own[me].ordinal = 1
            :: else ->
                own[me].ordinal = 0;
                own[me].at++;
#ifdef NO_UNSEEN_AT_BEGIN
                own[me].unseen = own[me].unseen | bit(t)
#endif
            fi
        fi
    fi;
    settle(me);
    k = 0; t = 0
}

/* Every record that waits, and the state, in one Kafka transaction. As far as it is copied, the topic is the table. */
inline records(me) {
    k = 0;
    do
    :: k < 2 ->
        if
        :: waits[me * 2 + k].any ->
            assert(waits[me * 2 + k].emptied || waits[me * 2 + k].version > topic[k].version ||
                (again && waits[me * 2 + k].version == topic[k].version));
            topic[k].version = waits[me * 2 + k].version;
            topic[k].present = waits[me * 2 + k].present;
            waits[me * 2 + k].any = false; waits[me * 2 + k].emptied = false;
            waits[me * 2 + k].version = 0; waits[me * 2 + k].present = false
        :: else
        fi;
        k++
    :: else -> break
    od
}
inline positions(me) {
    recorded.at = own[me].at; recorded.ordinal = own[me].ordinal; recorded.unseen = own[me].unseen;
    recorded.before = own[me].before; recorded.copied = own[me].copied; recorded.judged = own[me].judged;
    recorded.remembered = own[me].remembered; recorded.claimed = true;
    recorded.snapshot[0] = own[me].snapshot[0]; recorded.snapshot[1] = own[me].snapshot[1];
    recorded.lsn[0] = own[me].lsn[0]; recorded.lsn[1] = own[me].lsn[1]
}
inline require_right(me) {
    k = 0;
    do
    :: k < 2 ->
        if
        :: own[me].copied & bit(k) ->
            seeing = ((own[me].judged & bit(k)) -> own[me].snapshot[k] : 0); whole = own[me].at; part = own[me].ordinal;
            find_row();
            assert((topic[k].present == row.present && (!row.present || topic[k].version == row.version)) ||
                (again && !row.present && (own[me].judged & bit(k))))    /* its delete is still to come */
        :: else
        fi;
        k++
    :: else -> break
    od;
    row.version = 0; row.present = false; t = 0; k = 0
}

inline forget(who) {                     /* a producer that has ended has no state */
    own[who].at = 0; own[who].ordinal = 0; own[who].unseen = 0; own[who].before = 0; own[who].copied = 0;
    own[who].judged = 0; own[who].remembered = 0; own[who].claimed = false;
    own[who].snapshot[0] = 0; own[who].snapshot[1] = 0; own[who].lsn[0] = 0; own[who].lsn[1] = 0;
    waits[(who) * 2].any = false; waits[(who) * 2].version = 0; waits[(who) * 2].present = false; waits[(who) * 2].emptied = false;
    waits[(who) * 2 + 1].any = false; waits[(who) * 2 + 1].version = 0; waits[(who) * 2 + 1].present = false;
    waits[(who) * 2 + 1].emptied = false;
    reading[who] = 0
}

#ifdef NO_FENCE
#define fenced_out(other) skip
#else
#define fenced_out(other) forget(other)  /* it can do nothing with what it has: fewer states */
#endif

inline load(me) {
    own[me].at = recorded.at; own[me].ordinal = recorded.ordinal; own[me].unseen = recorded.unseen;
    own[me].before = recorded.before; own[me].copied = recorded.copied; own[me].judged = recorded.judged;
    own[me].remembered = recorded.remembered; own[me].claimed = recorded.claimed;
    own[me].snapshot[0] = recorded.snapshot[0]; own[me].snapshot[1] = recorded.snapshot[1];
    own[me].lsn[0] = recorded.lsn[0]; own[me].lsn[1] = recorded.lsn[1]
}

#define moved(me) (own[me].at != recorded.at || own[me].ordinal != recorded.ordinal)
#define all_over (nwal == NT && tx[0].ended && tx[NT - 1].ended && tx[NT / 2].ended)

#ifdef NO_FENCE                         /* Kafka takes a transaction of any producer */
#define may_write(me) true
#else
#define may_write(me) (epoch == me + 1)
#endif

/* A worker: not reading, has its range, has its snapshot, has the LSN after it. */
#define IDLE 0
#define BEGUN 1
#define SEEN 2
#define READ 3

#ifdef NO_RANGE_ALONE                   /* a range that a worker reads is given to another one, too */
#define being_read(k) false
#else
#define being_read(k) ((state[0] && key[0] == k) || (state[1] && key[1] == k))
#endif
#define gap(me, k) (!(own[me].copied & bit(k)) && !being_read(k))
#ifdef NO_OWN_MOMENT                    /* the events of all chunks are judged by the latest snapshot */
#define moment(me, w, k) d_step { \
        seen[w] = seen[w] | own[me].snapshot[1 - k]; lsn[w] = (own[me].lsn[1 - k] > lsn[w] -> own[me].lsn[1 - k] : lsn[w]) }
#else
#define moment(me, w, k) skip
#endif

#ifdef NO_LOCK_FIRST
#define may_add(me) (may_write(me) && !locked_whole)
#else
#define may_add(me) may_write(me)
#endif

/* A worker's steps; what it has read is added to the Kafka transaction, and its key is copied. */
inline take_snapshot(w) {
#ifdef NO_LSN_AFTER
    lsn[w] = nwal;
#else
    seen[w] = all_ended;
#endif
    state[w] = SEEN
}
inline take_lsn(w) {
#ifdef NO_LSN_AFTER
    seen[w] = all_ended;
#else
    lsn[w] = nwal;
#endif
    state[w] = READ
}
inline add_chunk(me, w) {
    k = key[w];
    seeing = seen[w]; whole = 0; part = 0;
    find_row();
    i = 0;
    do
    :: i < nwal ->
        if
        :: truncates(wal[i]) && tx[wal[i]].ended && !(seen[w] & bit(wal[i])) -> row.present = false
        :: else
        fi;
        i++
    :: else -> break
    od;
#ifndef NO_LOCK_FIRST
    reading[me]--;
#endif
    moment(me, w, k);
    own[me].copied = own[me].copied | bit(k);
    own[me].judged = own[me].judged | bit(k);
    own[me].snapshot[k] = seen[w];
    own[me].lsn[k] = lsn[w];
    if
    :: row.present ->
        own[me].remembered = own[me].remembered | (again -> bit(k) : 0);
        publish(me, row.version, true, again)
    :: else
    fi;
    settle(me);
    row.version = 0; row.present = false; i = 0; t = 0; k = 0;
    key[w] = 0; seen[w] = 0; lsn[w] = 0; state[w] = IDLE;
    dirty = true
}

proctype Producer(byte me) {
    byte state[2], key[2], seen[2], lsn[2];    /* of each worker */
    bool dirty;                         /* something was read that is not committed */

    /* A start: fence every producer before, then read how far it got. */
#ifdef NO_FENCE_FIRST
    d_step { me == 0 || epoch != 0; load(me) };
    d_step { epoch = me + 1; fenced_out(1 - me) };
#else
    d_step { me == 0 || epoch != 0; epoch = me + 1; fenced_out(1 - me) };
    d_step { load(me) };
#endif
    d_step {
        if                              /* the slot sends what was not confirmed; what is recorded is skipped */
        :: confirmed > own[me].at -> own[me].at = confirmed; own[me].ordinal = 0
        :: else
        fi;
#ifdef NO_SKIP
        own[me].at = confirmed; own[me].ordinal = 0;
#endif
#ifdef NO_ORDINAL                       /* a transaction that spans Kafka transactions is read from its beginning */
        own[me].ordinal = 0;
#endif
#ifdef NO_RECORDED_UNSEEN
        own[me].unseen = 0;
#endif
#ifdef NO_RECORDED_KEYS
        own[me].remembered = 0;
#endif
#ifdef NO_GAPS                          /* all is taken for copied up to the last range that is */
        own[me].copied = own[me].copied | ((own[me].copied & 2) -> 1 : 0);
#endif
        published = true
    }
    d_step {                            /* what runs now may be in neither the stream nor an earlier snapshot */
        if
        :: !own[me].claimed ->
            i = 0;
            do
            :: i < NT -> own[me].before = own[me].before | (running(i) -> bit(i) : 0); i++
            :: else -> break
            od;
            own[me].claimed = true; i = 0
        :: else
        fi
    }

    do
    /* A fenced producer ends what it is at; whatever it began later would be refused just the same. */
    :: d_step { own[me].at < nwal &&
#ifndef NO_WAIT_FOR_CHUNKS              /* the stream is not read while a chunk is */
            state[0] == IDLE && state[1] == IDLE &&
#endif
            epoch == me + 1 ->
            stream(me);
            dirty = true
#ifdef NO_CONFIRM_AFTER                 /* the slot is told to release WAL before Kafka has it */
            ;
            confirmed = own[me].at
#endif
       }
    :: dirty ->
commit:
#ifdef NO_ONE_TRANSACTION               /* the records in one, the position in another */
        if
        :: d_step { may_write(me) -> records(me); k = 0 }
        :: atomic { !may_write(me) -> d_step { forget(me) }; goto fenced }
        fi;
#endif
        if
        :: d_step { may_write(me) ->
                confirmed = (recorded.at > confirmed -> recorded.at : confirmed);   /* the slot is told later */
                records(me); positions(me); require_right(me); dirty = false }
        :: atomic { !may_write(me) -> d_step { forget(me) }; goto fenced }
        fi

    /* A chunk: the first key that is in a gap, once nothing is in its way, for an idle worker. */
    :: d_step { !dirty && epoch == me + 1 && (gap(me, 0) || gap(me, 1)) && (state[0] == IDLE || state[1] == IDLE) &&
            (!again || (own[me].judged == 0 && state[0] == IDLE && state[1] == IDLE)) &&
#ifndef NO_BARRIER                      /* all that the stream has passed is visible */
            visible(own[me].unseen) &&
#endif
#ifndef NO_NOT_BEFORE                   /* all that ran when the table was published has ended */
            visible(own[me].before) &&
#endif
#ifndef NO_LOCK_FIRST                   /* what truncates shows the table empty to every snapshot taken before its end */
            !locked_whole &&
#endif
            true ->
#ifndef NO_LOCK_FIRST
            reading[me]++;
#endif
            i = (state[0] == IDLE -> 0 : 1);
            key[i] = (gap(me, 0) -> 0 : 1);
            state[i] = BEGUN;
            own[me].unseen = own[me].unseen & ~all_ended; own[me].before = own[me].before & ~all_ended;
            i = 0
       }
    :: d_step { state[0] == BEGUN && may_write(me) -> take_snapshot(0) }
    :: d_step { state[1] == BEGUN && may_write(me) -> take_snapshot(1) }
    :: d_step { state[0] == SEEN && may_write(me) -> take_lsn(0) }
    :: d_step { state[1] == SEEN && may_write(me) -> take_lsn(1) }
    :: d_step { state[0] == READ && may_add(me) -> add_chunk(me, 0) }; goto commit
    :: d_step { state[1] == READ && may_add(me) -> add_chunk(me, 1) }; goto commit

    /* The end: all is visible, streamed and copied. */
    :: d_step { all_over && !dirty && own[me].at == nwal && own[me].copied == 3 && epoch == me + 1 ->
            k = 0;
            do
            :: k < 2 ->
                seeing = 0; whole = NT; part = 0;
                find_row();
                assert(topic[k].present == row.present && (!row.present || topic[k].version == row.version));
                k++
            :: else -> break
            od;
            row.version = 0; row.present = false; i = 0; t = 0; k = 0;
            forget(me)
       };
       break
    :: d_step { epoch != me + 1 && !dirty -> forget(me) }; break
    od;
fenced: skip
}

init {
    atomic {
        byte n;
        select(n : 0 .. 1);
        again = n;
        if
        :: again -> published = true; topic[0].version = 1; topic[0].present = true; topic[1].present = true
        :: else
        fi;
        n = 0;
        mtype:op op = truncate_insert0;    /* the first number */
        do
        :: n < NT ->
            do                          /* sessions are alike: each set of operations once */
            :: break
            :: op < update0 -> op++
            od;
            tx[n].op = op;
            run Session(n);
            n++
        :: else -> break
        od;
        run Producer(0);
        run Producer(1)
    }
}
