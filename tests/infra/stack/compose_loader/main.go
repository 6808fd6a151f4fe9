// Loads a Compose file with every profile, as `docker compose config` does, and prints it.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	options, err := cli.NewProjectOptions(os.Args[1:], cli.WithOsEnv, cli.WithProfiles([]string{"*"}), cli.WithName("headrace"))
	if err == nil {
		project, err2 := options.LoadProject(context.Background())
		err = err2
		if err == nil {
			text, _ := project.MarshalYAML()
			fmt.Print(string(text))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
