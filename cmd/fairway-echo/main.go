// Command fairway-echo is `fairway echo` as a small program of its own: a few
// megabytes, started in milliseconds. `fairway echo` becomes it where it lies
// in the same folder.
package main

import (
	"os"

	"fairway.dev/fairway/internal/echo"
)

func main() { os.Exit(echo.Main(os.Args[1:], os.Stderr)) }
