//go:build tools

// Package opa names the program that the tests of the plugin opa run against.
package opa

import _ "github.com/open-policy-agent/opa"
