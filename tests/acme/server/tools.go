//go:build tools

// Package tools names what tests/acme/build builds, so that go.mod and go.sum hold it.
package tools

import (
	_ "github.com/letsencrypt/pebble/v2/cmd/pebble"
	_ "github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv"
)
