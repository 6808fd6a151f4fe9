package routing

import (
	"context"
	"database/sql"
	"errors"
	"sync/atomic"
	"time"
)

const query = "SELECT partition, upto, finished FROM headrace.rehash_cursors"

// Reading holds the cursors, none older than AskedAt. Without AskedAt, nothing has been passed.
type Reading struct {
	AskedAt time.Time
	Cursors []Cursor
}

// Follower keeps the cursors. Use one per process: it polls at an interval, never per name.
type Follower struct {
	latest atomic.Pointer[Reading]
}

// Follow polls at once, and then repeatedly until the context ends. While the database is away, or where it is a
// standby, it keeps the last answer: Homes is right with it, since the second home is asked too.
func Follow(ctx context.Context, db *sql.DB, every time.Duration, failed func(error)) *Follower {
	follower := &Follower{}
	follower.latest.Store(&Reading{})
	follower.ask(ctx, db, failed)
	go func() {
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(every):
				follower.ask(ctx, db, failed)
			}
		}
	}()
	return follower
}

// Latest returns the last answer. Read it before you choose a home, and choose by it alone.
func (f *Follower) Latest() Reading {
	return *f.latest.Load()
}

func (f *Follower) ask(ctx context.Context, db *sql.DB, failed func(error)) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	askedAt := time.Now()
	cursors, err := Ask(ctx, db)
	if err != nil {
		failed(err)
		return
	}
	f.latest.Store(&Reading{AskedAt: askedAt, Cursors: cursors})
}

// Ask reads the cursors once, from the primary alone.
func Ask(ctx context.Context, db *sql.DB) ([]Cursor, error) {
	connection, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	var standby bool
	if err := connection.QueryRowContext(ctx, "SELECT pg_is_in_recovery()").Scan(&standby); err != nil {
		return nil, err
	}
	if standby {
		return nil, errors.New("it is a standby, which shows the past: give the primary")
	}
	rows, err := connection.QueryContext(ctx, query)
	if undefined(err) {
		return nil, nil // the migration never ran
	}
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var cursors []Cursor
	for rows.Next() {
		var each Cursor
		if err := rows.Scan(&each.Partition, &each.Upto, &each.Finished); err != nil {
			return nil, err
		}
		cursors = append(cursors, each)
	}
	return cursors, rows.Err()
}

// undefined reports whether the table does not exist. The errors of lib/pq and of pgx have this method.
func undefined(err error) bool {
	var state interface{ SQLState() string }
	return errors.As(err, &state) && state.SQLState() == "42P01"
}
