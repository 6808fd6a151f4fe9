// Answers for tests/consumers/routing/test_readers.py: one question a line, as JSON, one answer a line.
package main

import (
	"bufio"
	"encoding/json"
	"log"
	"os"

	"headrace/readers/routing"
)

func main() {
	questions, answers := bufio.NewReader(os.Stdin), json.NewEncoder(os.Stdout)
	decoder := json.NewDecoder(questions)
	for decoder.More() {
		var question struct {
			Name    string            `json:"name"`
			Nodes   []string          `json:"nodes"`
			Pins    map[string]string `json:"pins"`
			Cursors []routing.Cursor  `json:"cursors"`
		}
		if err := decoder.Decode(&question); err != nil {
			log.Fatal(err)
		}
		key := routing.NormalForm(question.Name)
		answer := map[string]any{
			"normal_form": key,
			"partition":   routing.Partition(key),
			"md5":         routing.MD5Home(key, question.Nodes),
			"rendezvous":  routing.RendezvousHome(key, question.Nodes),
			"homes":       routing.Homes(question.Name, question.Nodes, question.Pins, question.Cursors),
		}
		if err := answers.Encode(answer); err != nil {
			log.Fatal(err)
		}
	}
}
