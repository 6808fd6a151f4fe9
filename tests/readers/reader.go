// Reads repositories until its input ends, with the reference reader in Go; see tests/readers/__init__.py.
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"io"
	"log"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	_ "github.com/lib/pq"

	"headrace/readers/routing"
)

type work struct {
	DSN            string            `json:"dsn"`
	Nodes          []string          `json:"nodes"`
	Pins           map[string]string `json:"pins"`
	Roots          map[string]string `json:"roots"`
	Names          []string          `json:"names"`
	RefreshSeconds float64           `json:"refresh_seconds"`
	PauseSeconds   float64           `json:"pause_seconds"`
}

type read struct {
	Name  string   `json:"name"`
	Asked float64  `json:"asked"`
	Began float64  `json:"began"`
	Ended float64  `json:"ended"`
	Tried []string `json:"tried"`
	Value string   `json:"value"`
	Error string   `json:"error"`
}

func main() {
	content, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var given work
	if err := json.Unmarshal(content, &given); err != nil {
		log.Fatal(err)
	}
	db, err := sql.Open("postgres", given.DSN)
	if err != nil {
		log.Fatal(err)
	}
	ctx, end := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		end()
	}()
	every := time.Duration(given.RefreshSeconds * float64(time.Second))
	follower := routing.Follow(ctx, db, every, func(err error) { log.Print(err) })
	out := json.NewEncoder(os.Stdout)
	for ctx.Err() == nil {
		if err := out.Encode(given.read(given.Names[rand.Intn(len(given.Names))], follower.Latest())); err != nil {
			log.Fatal(err)
		}
		time.Sleep(time.Duration(given.PauseSeconds * float64(time.Second)))
	}
}

func (w work) read(name string, reading routing.Reading) read {
	found := read{Name: name, Asked: seconds(reading.AskedAt), Began: seconds(time.Now())}
	for _, node := range routing.Homes(name, w.Nodes, w.Pins, reading.Cursors) {
		found.Tried = append(found.Tried, node)
		place := filepath.Join(w.Roots[node], routing.NormalForm(name), ".git")
		output, err := exec.Command("git", "--git-dir="+place, "cat-file", "blob", "refs/heads/main:file").CombinedOutput()
		if err == nil {
			found.Value, found.Error = strings.TrimSpace(string(output)), ""
			break
		}
		found.Error = strings.TrimSpace(string(output))
		if _, err := os.Lstat(filepath.Join(place, "HEAD")); err == nil {
			break // it exists, but cannot be read
		}
	}
	found.Ended = seconds(time.Now())
	return found
}

func seconds(at time.Time) float64 {
	return float64(at.UnixNano()) / 1e9
}
