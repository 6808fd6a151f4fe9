/* (b) Applying: visibility, ledger, fence, and a switchover with a promotion and zombies.
 *
 * An application writes two rows of a gitlab schema, first in database A, then, once that has moved, in B, a physical
 * copy of A. A producer of each puts the commits into one topic. Two consumers apply the events, one transaction each
 * for effects and ledger. They are not told apart by a group: either may work at any moment, at either database, with
 * whatever offset it had, so each is the other's zombie; and they may be killed at any step. An operator moves the
 * gitlab schema (close, replay, promote, release, open), another takes that back (abort), a tool may promote too soon.
 * Modelled after consumers/{fence,waiting,batches,applying,ledger,owning}.py, producers/{move_rules,ownership}.py and
 * infra/guard.sql.
 *
 * Abstractions: the transactions that a snapshot does not show are those that have not ended when it is taken (which
 * ids those are is schemas/xid_snapshot.py's matter). Of each commit, logged (in the WAL, decoded, replicated) and
 * visible are two moments; its locks are kept until the second. One partition; batches of two events at most.
 *
 * Each NO_… leaves one rule out; docs/explanation/models.md has what each is for, `make model` shows that each is needed.
 */

#ifndef NX
#define NX 3                            /* transactions of the application, each writes one row */
#endif
#define A 0
#define B 1
#define NOBODY 2
#define bit(n) (1 << (n))

/* The application. A row is `wanted` by the transaction that wrote it last, until an effect makes it done. */
byte writes[NX];                        /* which row a transaction writes */
byte at[NX];                            /* in which database; NOBODY before it began */
byte applied;                           /* ghost: the transactions whose event had an effect */

typedef Row { byte by; bool done }      /* by: transaction + 1; 0 is the row of before */
typedef Database {                      /* what is in it: its rows, the ledger and headrace's own rows */
    Row row[2];
    byte ledger;                        /* the next offset */
    byte owner;                         /* of the gitlab schema */
    byte id;                            /* of the switchover that closed it last */
    bool named                          /* B's alone: it has its own name and not A's */
}
Database logged[2];                     /* with everything that is in the WAL; for B before its promotion: replayed */
Database visible[2];
byte locked[4];                         /* database * 2 + row: who has written it and is not visible, + 1 */
byte ledger_locked[2];
byte shared;                            /* how many share the fence's lock in A */
bool alone;                             /* who changes A's owner has it alone */
bool promoted, released;                /* released: A's own row says that it is B's for good */
byte released_id;

/* The topic: one partition; and the WAL of each database, as far as the application's commits go. */
byte topic[NX], end;
byte wal_a[NX], wal_b[NX];
byte n_a, n_b, published_a, published_b;
byte ended;                             /* the application's transactions that are visible where they were written */
byte in_topic[2];                       /* the last event's commit for each row, in the order of all commits, + 1 */
byte order[NX], commits;

#define owns(s) (visible[s].owner == s && (s == A || visible[B].named))
#define opened visible[B].named

inline copy_database(to, from) {
    to.row[0].by = from.row[0].by; to.row[0].done = from.row[0].done;
    to.row[1].by = from.row[1].by; to.row[1].done = from.row[1].done;
    to.ledger = from.ledger; to.owner = from.owner; to.id = from.id
}

/* Share the lock of the fence, or of the guard in an application's transaction; who wants it alone goes first. */
#define may_share(s) (s == B || !alone)

proctype Application(byte me) {
    byte s;
    /* It goes where the gitlab schema is owned, and its tables' guard makes sure of that. */
endbegin:
    atomic {
        if
#ifdef NO_GUARD                         /* the application is not kept from the side that gave the schema away */
        :: s = A
#else
        :: may_share(A) && owns(A) -> s = A; shared++
#endif
        :: owns(B) -> s = B
        fi
    }
    d_step {                            /* in the WAL … */
        !locked[s * 2 + writes[me]] -> locked[s * 2 + writes[me]] = me + 10; at[me] = s;
        logged[s].row[writes[me]].by = me + 1; logged[s].row[writes[me]].done = false;
        commits++; order[me] = commits;
        if
        :: s == A -> wal_a[n_a] = me; n_a++
        :: else -> wal_b[n_b] = me; n_b++
        fi;
        assert(s == B || !opened)       /* else it is lost: the copy that owns the schema does not have it */
    }
    d_step {                            /* … and visible */
        visible[s].row[writes[me]].by = me + 1; visible[s].row[writes[me]].done = false;
        locked[s * 2 + writes[me]] = 0;
#ifndef NO_GUARD
        if
        :: s == A -> shared--
        :: else
        fi;
#endif
        ended = ended | bit(me)
    }
}

#define order_of(x) order[x]

/* Puts the commits of A, then those of B, into the topic: B's producer starts after the old one's handover. */
proctype Producer() {
    byte x;
endproducer:
    do
    :: d_step { published_a < n_a ->
            x = wal_a[published_a]; published_a++;
            assert(order_of(x) > in_topic[writes[x]]); in_topic[writes[x]] = order_of(x);
            topic[end] = x; end++; x = 0 }
#ifdef NO_HANDOVER
    :: d_step { published_b < n_b ->
#else
    :: d_step { published_b < n_b && published_a == n_a && logged[A].owner == B ->
#endif
            x = wal_b[published_b]; published_b++;
            assert(order_of(x) > in_topic[writes[x]]); in_topic[writes[x]] = order_of(x);
            topic[end] = x; end++; x = 0 }
    :: end == NX -> break
    od
}

/* Gives everything back that a transaction has, at its end. */
inline let_go() {
    if
    :: locked[s * 2] == me + 1 -> locked[s * 2] = 0
    :: else
    fi;
    if
    :: locked[s * 2 + 1] == me + 1 -> locked[s * 2 + 1] = 0
    :: else
    fi;
    if
    :: ledger_locked[s] == me + 1 -> ledger_locked[s] = 0
    :: else
    fi;
    if
    :: shares && s == A -> shared--
    :: else
    fi;
    shares = false; count = 0; effects = 0; j = 0; owner = false
}
#define restart d_step { let_go(); s = 0; position = 0; leave }; goto endstart

#ifdef NO_VISIBILITY                    /* an event is applied whether its transaction is visible or not */
#define hidden_from(x) false
#else
#define hidden_from(x) (at[x] == s && !(ended & bit(x)))    /* ids of another database say nothing in this one */
#endif

#define row_of(o) writes[topic[o]]

/* For safety any consumer may work at any moment and die at any step, as often as it likes. For progress, the group
 * gives the partition to one at a time, who keeps it until it leaves, one may be killed once, and A may be gone for
 * good once B is open. */
#ifdef LIVE
byte holder;
bool died, down;
#ifdef NO_ASK_OTHERS                    /* whose database does not answer does not ask the others for the owner */
#define other_owns false
#else
#define other_owns owns(B)
#endif
#define HOLDS (holder == me)
#define UP(s) (s == B || !down)
#define may_die (!died)
#define killed died = true
#define leave holder = 1 - me
active proctype Outage() { opened -> down = true }
#else
#define HOLDS true
#define UP(s) true
#define may_die true
#define killed skip
#define leave skip
#endif

proctype Consumer(byte me) {
    byte s, position, count, effects, j, x;
    bool shares, owner;

endstart:                                  /* every database is asked for its own rows: who owns the schema? */
    atomic {
        if
        :: HOLDS && UP(A) && owns(A) -> s = A
        :: HOLDS && owns(B) -> s = B
        :: visible[A].ledger == NX || visible[B].ledger == NX -> goto done
        fi;
        position = visible[s].ledger    /* the ledger is the truth, whatever Kafka says */
    };

endwork:
    do
    :: position == NX -> goto done
    :: position < end && HOLDS && UP(s) ->
        /* The fence: the locks first, then the look, and with it the snapshot. */
#ifdef NO_LOOK_AFTER_LOCK
        owner = owns(s);
#endif
#ifndef NO_LOCK
        d_step { may_share(s) -> shared = shared + (s == A -> 1 : 0); shares = true };
#endif
        atomic {
#ifndef NO_LOOK_AFTER_LOCK
            owner = owns(s);
#endif
#ifndef NO_OWNER
            if
            :: !owner -> restart
            :: else -> owner = false
            fi;
#endif
            /* How many events it may apply: up to the first whose transaction it does not see. */
            count = 0;
            do
            :: count < 2 && position + count < end && !hidden_from(topic[position + count]) -> count++
#ifdef NO_ORDER                         /* what follows an event that waits does not wait with it */
            :: count < 2 && position + count + 1 < end && hidden_from(topic[position + count]) &&
                !hidden_from(topic[position + count + 1]) -> count = 2
#endif
            :: else -> break
            od;
            if
            :: count == 0 -> d_step { let_go() }; goto wait
            :: count == 2 -> if :: true :: count = 1 fi
            :: else
            fi
        };
#ifdef NO_ONE_TRANSACTION               /* the ledger moves in a transaction of its own, before the effects */
        atomic { visible[s].ledger == position -> visible[s].ledger = position + count;
            logged[s].ledger = position + count;
            x = topic[position];
            assert(logged[s].row[writes[x]].by != x + 1 || logged[s].row[writes[x]].done);
            x = 0 };
#endif
        /* The effects, each guarded by the migration's own condition on the row as it is visible now. */
        atomic {
            do
            :: j < count ->
                if
                :: visible[s].row[row_of(position + j)].done || !visible[s].row[row_of(position + j)].by
                :: else ->
                    if
                    :: locked[s * 2 + row_of(position + j)] && locked[s * 2 + row_of(position + j)] != me + 1 ->
                        d_step { let_go() }; goto wait  /* the row stays locked: the partition waits */
                    :: else
                    fi;
                    locked[s * 2 + row_of(position + j)] = me + 1;
                    if
                    :: effects & bit(2 + row_of(position + j))  /* its own effect on the same row, just before */
                    :: else -> effects = effects | bit(j) | bit(2 + row_of(position + j))
                    fi
                fi;
                j++
            :: else -> break
            od;
            j = 0
        };
        if
        :: true
        :: may_die -> killed; restart   /* … or within one, which is rolled back */
        fi;
        /* The ledger, by compare-and-set; and the commit: in the WAL, and then visible, whatever becomes of the process. */
        atomic {
#ifndef NO_ONE_TRANSACTION
            ledger_locked[s] == 0;
            if
#ifndef NO_COMPARE
            :: visible[s].ledger != position -> d_step { let_go(); position = visible[s].ledger }; goto endwork
#endif
            :: else -> ledger_locked[s] = me + 1
            fi;
#endif
            assert(opened == s);        /* never the wrong database */
#ifndef NO_ONE_TRANSACTION
            assert(position == logged[s].ledger);       /* nothing is stepped over, or counted twice */
            logged[s].ledger = position + count;
#endif
            j = 0;
            do
            :: j < 2 ->
                if
                :: effects & bit(j) ->
                    x = topic[position + j];
                    assert(!(applied & bit(x)));        /* an event has its effect once */
                    applied = applied | bit(x);
                    logged[s].row[writes[x]].done = true
                :: else
                fi;
                j++
            :: else -> break
            od;
            /* Once the ledger has passed an event, its row is not as it was when it was written. */
            j = 0;
            do
            :: j < position + count ->
                x = topic[j];
                assert(logged[s].row[writes[x]].by != x + 1 || logged[s].row[writes[x]].done);
                j++
            :: else -> break
            od;
            j = 0; x = 0
        };
        d_step {
            if
            :: effects & bit(2) -> visible[s].row[0].done = true
            :: else
            fi;
            if
            :: effects & bit(3) -> visible[s].row[1].done = true
            :: else
            fi;
#ifndef NO_ONE_TRANSACTION
            visible[s].ledger = position + count;
#endif
            position = position + count;
            let_go()
        }
    :: may_die -> killed; restart       /* killed: between two transactions … */
#ifdef LIVE
    :: down && s == A && other_owns -> restart
    :: !HOLDS && position < NX -> goto endstart
#endif
    od;

wait:                                   /* set aside; tried again later */
#ifndef NO_BRING_BACK
    goto endwork;
#else
    false;
#endif
done:
    skip
}

#ifdef NO_RELEASE                       /* A's own row does not decide */
#define may_take_back true
#define still_closed true
#else
#define still_closed (visible[A].owner == B)
#define may_take_back (!released)
#endif

#ifdef NO_ID                            /* which switchover the copy was closed by is not looked at */
#define copy_has_it true
#else
#define copy_has_it (visible[B].owner == B && visible[B].id == visible[A].id)
#endif

/* `headrace switchover`: closes A, has the copy replay that, promotes it, releases, opens. May be run twice. */
proctype Switchover() {
    byte runs;
again:
    runs++;
    if
    :: runs > 2 -> goto over
    :: true -> goto over                /* or nobody moves anything (any more) */
    :: visible[A].owner == A
    fi;
#ifndef NO_CLOSE_ALONE                  /* under the fence's lock, alone: after all that is under way */
    d_step { shared == 0 && !alone -> alone = true };
#endif
    d_step { logged[A].owner = B; logged[A].id = runs };
    d_step { visible[A].owner = B; visible[A].id = runs; alone = false };
    /* Replayed and promoted (the copy's own process); or taken back meanwhile. */
    if
    :: promoted
    :: visible[A].owner == A -> goto again
    fi;
    /* Released on A, alone: only to a promoted server that has this very move, and so all that A wrote before it. */
    atomic {
        shared == 0 && !alone;
        if
        :: still_closed && copy_has_it -> released = true
        :: else -> goto over            /* missed, or taken back */
        fi
    };
    d_step {
        /* The copy that is opened has all that A has: nothing is lost, nothing is done again. */
        visible[B].named = true; logged[B].named = true; visible[B].owner = B; logged[B].owner = B;
        assert(visible[A].owner == B);  /* one owner at every instant */
        assert(visible[B].ledger == logged[A].ledger);
        assert(visible[B].row[0].by == logged[A].row[0].by && visible[B].row[0].done == logged[A].row[0].done);
        assert(visible[B].row[1].by == logged[A].row[1].by && visible[B].row[1].done == logged[A].row[1].done)
    };
over:
    skip
}

/* `headrace switchover --abort`, once: it may be taken back until A's own row says that it is released. */
proctype Abort() {
    if
    :: true
    :: atomic { visible[A].owner == B && shared == 0 && !alone && may_take_back ->
            visible[A].owner = A; logged[A].owner = A; assert(!opened) }
    fi
}

/* The standby: replays what is in A's WAL, and is promoted, by the switchover once it has the close, or by mistake. */
proctype Standby() {
    do
    :: d_step { logged[A].ledger != logged[B].ledger || logged[A].owner != logged[B].owner ||
            logged[A].id != logged[B].id ||
            logged[A].row[0].by != logged[B].row[0].by || logged[A].row[0].done != logged[B].row[0].done ||
            logged[A].row[1].by != logged[B].row[1].by || logged[A].row[1].done != logged[B].row[1].done ->
            copy_database(logged[B], logged[A]) }
    :: d_step { true -> copy_database(visible[B], logged[B]); promoted = true } break
    od
}

init {
    atomic {
        byte n;
        do
        :: n < NX ->
            at[n] = NOBODY;
            if
            :: writes[n] = 0
            :: n > 0 -> writes[n] = 1
            fi;
            run Application(n);
            n++
        :: else -> break
        od;
        n = 0;
        run Producer();
        run Standby();
        run Switchover();
        run Abort();
        run Consumer(0);
        run Consumer(1)
    }
}

#ifdef LIVE
#define owned (owns(A) || owns(B))
#define caught_up ((owns(A) && visible[A].ledger == NX) || (owns(B) && visible[B].ledger == NX))
ltl all_is_applied { (<>[] owned) -> <> caught_up }
#endif
