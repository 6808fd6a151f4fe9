/* (c) Routing: one repository moves from its md5 home to its rendezvous home, or back, while it is read and pushed to.
 *
 * A member moves it, and may be killed at any step, as often as it likes. Its session may be lost at any moment while it
 * is frozen: then another one takes the partition's lock, and the first goes on as a zombie. The reader knows a cursor that may be
 * as old as it likes. A repository may be cloned at any moment, by somebody whose cursor is young enough. The run may be
 * turned round once. Modelled after consumers/gitserver/{worker,moves,states,cursors}.py and consumers/routing/lookup.py.
 *
 * Abstractions: one name (which names the cursor passes at a time is cursors.move); what a repository has is the set of its pushes; carrying over is one
 * step, after which the target has all that the source had; a push under way is seen in the directory that it is in.
 * Time is counted in halves of the grace period: a request takes one at most, and so young is a cursor that is `sure`.
 *
 * Each NO_… leaves one rule out; docs/explanation/models.md has what each is for, `make model` shows that each is needed.
 */

#define MD5 0
#define RDV 1
#define NOWHERE 2
#define bit(n) (1 << (n))
#ifdef NO_GRACE
#define GRACE 0
#else
#define GRACE 3                         /* ticks after which two halves are over for sure */
#endif
#define OLD 4                           /* the age of a reading that is older than the whole grace period */

mtype:state = { unnoted, wanted, copied, passed, leaving, settled, failed };

/* The disks. */
bool place[2];                          /* a repository lies in its place at this home … */
byte has[2];                            /* … with these pushes */
bool left[2];                           /* one that nobody can open any more waits there for its deletion … */
byte left_has[2];
bool pair;                              /* the two in their places are copies of one move: the base says so */
byte aside;                             /* what was put by for an operator */
byte into = NOWHERE;                    /* where the push under way opened the repository … */
bool into_left;                         /* … which has been taken out of reach meanwhile */

/* The database. */
mtype:state state = unnoted;
bool forward = true;
bool cursor;                            /* whether readers look at the rendezvous home first */
byte leave_in;                          /* until the old copy may go */
bool taken;                             /* the partition's lock … */
bool holds[2];                          /* … and whose session has it */
bool current[2];                        /* whose transactions are of the present run, in a session that is there */
bool writing;                           /* one is open, and keeps the run from being turned */

/* Ghosts. */
bool cloned;                            /* there is such a repository */
bool astray;                            /* cloned at a home that the cursor had left, or given up */
bool acknowledged;                      /* a push was */
bool requested;                         /* a request under way … */
bool request_left;                      /* … and whether it may take another half of the grace period */
byte age = OLD;                         /* of the reader's cursor */
bool turned, lost, gave_up;

#define OLD_HOME (forward -> MD5 : RDV)
#define NEW_HOME (forward -> RDV : MD5)
#define behind_cursor (cursor == forward)
#define everywhere ((place[0] -> has[0] : 0) | (place[1] -> has[1] : 0) | (left[0] -> left_has[0] : 0) \
    | (left[1] -> left_has[1] : 0) | aside)
#define require_pushes assert((acknowledged & ~everywhere) == 0)

proctype Clock() {
endclock:
    do
    :: d_step { (!requested || request_left) && (leave_in > 0 || age < OLD || request_left) ->
            leave_in = (leave_in > 0 -> leave_in - 1 : 0);
            age = (age < OLD -> age + 1 : OLD);
            request_left = false }
    od
}

/* The application's clone, begun by a cursor of this moment, perhaps ended long after; and the events that say so. */
proctype Cloner() {
    byte home;
    if
    :: cloned
    :: atomic { !cloned -> home = (cursor -> RDV : MD5) };
        d_step { place[home] = true; cloned = true; astray = (home != (cursor -> RDV : MD5)); home = 0 }
    fi;
endnoted:
    do
    :: d_step { cloned && state == unnoted -> state = wanted }
    :: d_step { cloned && state == settled && place[OLD_HOME] && !place[NEW_HOME] -> state = wanted }
    od
}

/* The reader: reads the cursor, then looks for the repository, perhaps long after; and pushes to what it found. */
proctype Reader() {
    bool reading, known, sure;
    byte asked;
endreader:
    do
    :: atomic { age != 0 || reading != cursor || (cloned && !astray && !known) ->
        reading = cursor; age = 0; known = cloned && !astray }
    :: atomic { cloned && !requested ->
            requested = true; request_left = true; asked = (reading -> RDV : MD5); sure = (age <= 1) && known };
        atomic {
            if
            :: place[asked] -> goto opened
            :: else -> assert(!sure || gave_up)     /* the first answer of a young cursor is right */
            fi
        };
#ifdef NO_SECOND_HOME
        assert(false);
#endif
        atomic {
            asked = 1 - asked;
            assert(place[asked]);       /* what is there is found, however old the cursor is */
opened:
            if
            :: into == NOWHERE && !acknowledged -> into = asked
            :: true -> goto found
            fi
        };
        /* A push: it lands in the directory that was opened, wherever that is now. */
        d_step {
            if
            :: !into_left && place[into] -> has[into] = 1; acknowledged = 1
            :: into_left && left[into] -> left_has[into] = 1; acknowledged = 1
            :: else                     /* it is being deleted: the push fails */
            fi;
            into = NOWHERE; into_left = false
        };
found:
        atomic { requested = false; request_left = false; asked = 0; sure = false }
    od
}

/* Everything that one copy has is in the other afterwards. */
#define carried(from, to) has[to] = has[to] | has[from]

/* What is written is so in a transaction of the member's session, in the present run: else the transaction fails. */
#ifdef NO_SESSION
#define alive true
#else
#define alive current[me]
#endif

#ifdef NO_IN_USE                        /* what a push is at work in is deleted */
#define looks_for_use false
#else
#ifdef NO_IN_USE_AFTER_A_KILL           /* … unless it was put on record that it leaves: as the code was */
#define looks_for_use (state == leaving)
#else
#define looks_for_use true
#endif
#endif
#ifdef NO_ASK                           /* the cursor goes by what was cloned when the run began */
#define known_to_be_none (state == unnoted)
#else
#define known_to_be_none (state == unnoted && !cloned)
#endif

#ifdef NO_COPY_FIRST                    /* the cursor does not wait for the copy */
#define passes_uncopied (state == wanted)
#else
#define passes_uncopied false
#endif

proctype Mover(byte me) {
    bool made_has;                      /* of the copy that is being made, below the root's own directory */
    byte home, other;
endvisit:
    do
    /* The cursor passes a name when nothing is in its way: asked of the database at that moment. */
    :: atomic { (known_to_be_none || state == failed || passes_uncopied) && !behind_cursor && (me == 0 || lost) -> cursor = forward }

    /* A partition is one member's at a time. */
    :: atomic { !taken && (me == 0 || lost) && state != settled && state != failed && state != unnoted ->
#ifndef NO_PARTITION_LOCK
            taken = true;
#endif
            holds[me] = true; current[me] = true; home = OLD_HOME; other = NEW_HOME;
            if
            :: (left[0] || left[1]) && state != copied
            :: else -> goto dispatch
            fi
        };

        /* Moves._tidy: an old copy that is out of reach is carried over, and then deleted, in a transaction. */
        atomic {
            if
            :: into_left && into == (left[0] -> 0 : 1) && looks_for_use -> goto ended
            :: else
            fi;
            made_has = (left[0] -> left_has[0] : left_has[1]);
            if                          /* (that it is the only one left does not happen here: it would go back) */
#ifndef NO_SECOND_CARRY
            :: place[0] && (left[1] || !place[1]) -> has[0] = has[0] | made_has
            :: place[1] && (left[0] || !place[0]) -> has[1] = has[1] | made_has
#endif
            :: else
            fi
        };
        if
        :: atomic { alive ->
            if
            :: left[0] -> left[0] = false; left_has[0] = 0
            :: else -> left[1] = false; left_has[1] = 0
            fi;
            require_pushes }
        :: goto ended                   /* killed, or the session is lost */
        fi;

dispatch:
        atomic {
            made_has = 0;
            if
            /* Moves.bring */
            :: state == wanted && !place[home] && !place[other] -> goto ended
            :: state == wanted && !place[home] && place[other] -> goto record
            :: state == wanted && place[home] && place[other] && pair -> carried(home, other); goto record
            :: state == wanted && place[home] && !(place[other] && pair) -> made_has = has[home]
            /* Moves.refresh, right before readers are sent on */
            :: state == copied && !behind_cursor && place[other] ->
                if
                :: place[home] && pair -> carried(home, other)
                :: else
                fi;
                goto pass
            :: state == copied && !place[other] ->
                if
                :: alive -> state = wanted
                :: else
                fi;
                goto ended
            /* The clock starts only when every reader can know where the cursor is. */
            :: state == copied && behind_cursor && place[other] ->
                if
                :: alive -> state = passed; leave_in = GRACE
                :: else
                fi;
                goto ended
            /* Moves.follow */
            :: state == passed && leave_in > 0 ->
                if
                :: place[home] && place[other] -> carried(home, other)
                :: else
                fi;
                goto ended
            :: state == passed && leave_in == 0 -> goto leave
            /* Moves.delete, once that is done */
            :: state == leaving ->
                if
                :: alive -> state = (place[other] && !place[home] -> settled : wanted)
                :: else
                fi;
                goto ended
            :: else -> goto ended
            fi
        };
        /* The copy is made; then it is put into its place, within a transaction. */
        if
        :: atomic { alive && state == wanted && !gave_up -> state = failed; gave_up = true; goto ended }
        :: atomic { alive ->
            if                          /* what is no copy of this move is put by */
            :: place[other] -> aside = aside | has[other]
            :: else
            fi;
            place[other] = true; has[other] = made_has; pair = true; made_has = 0; writing = true }
        :: goto ended
        fi;
        if
        :: atomic { alive -> writing = false }
        :: atomic { holds[me] -> writing = false; goto ended }     /* killed: the renaming remains */
        :: atomic { !holds[me] ->
#ifdef NO_STAYING                       /* it is taken back, however late that is: as the code was */
            if
            :: place[other] -> place[other] = false; has[other] = 0; require_pushes
            :: else
            fi;
#endif
            goto ended }
        fi;
record:
        atomic {
            if
            :: alive && state == wanted -> state = copied
            :: else
            fi;
            goto ended
        };
pass:
#ifdef NO_CLOCK_AFTER_COMMIT            /* the grace period begins in the transaction that moves the cursor */
        atomic {
            if
            :: alive && state == copied -> state = passed; leave_in = GRACE
            :: else -> goto ended
            fi
        };
        atomic {
            if
            :: alive && state == passed -> cursor = forward
            :: else
            fi;
            goto ended
        };
#endif
        atomic {
            if
            :: alive && state == copied -> cursor = forward
            :: else
            fi;
            goto ended
        };
leave:
        atomic {
            if
            :: !place[home] || !place[other] ->
                if
                :: alive && state == passed -> state = (place[other] -> settled : wanted)
                :: else
                fi;
                goto ended
            :: else
            fi;
            if
            :: into == home && !into_left -> goto ended
            :: else
            fi;
            carried(home, other)
        };
        /* Out of reach, within a transaction. */
        if
        :: atomic { alive && state == passed && place[home] && !left[home] ->
                place[home] = false; left[home] = true; left_has[home] = has[home]; has[home] = 0; pair = false;
                into_left = (into == home); writing = true }
        :: goto ended
        fi;
        if
        :: atomic { alive -> state = leaving; writing = false }
        :: atomic { holds[me] -> writing = false }                  /* killed: the renaming remains */
        :: atomic { !holds[me] ->                                   /* put back, if it lies there still */
                if
                :: left[home] && !place[home] ->
                    place[home] = true; has[home] = left_has[home]; left[home] = false; left_has[home] = 0;
                    into_left = false
                :: else
                fi }
        fi;

ended:
        atomic { made_has = 0; home = 0; other = 0; current[me] = false;
            if
            :: holds[me] -> holds[me] = false; taken = false
            :: else
            fi }
    od
}

/* A session is lost, once: its lock is free, and its member does not know. Or the run is turned round, once. */
proctype Trouble() {
    do
    :: atomic { !lost && holds[0] -> lost = true; holds[0] = false; current[0] = false; taken = false; writing = false }
    :: atomic { !turned && !writing -> turned = true; forward = !forward; current[0] = false; current[1] = false;
            if
            :: state != unnoted -> state = wanted
            :: else
            fi }
    :: break
    od
}

init {
    atomic {
        if
        :: cloned = true; place[MD5] = true; state = wanted
        :: true
        fi;
        run Clock();
        run Cloner();
        run Reader();
        run Mover(0);
        run Mover(1);
        run Trouble()
    }
}
