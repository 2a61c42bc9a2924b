//go:build tools

// Package consul names the program that the tests of service discovery run against.
package consul

import _ "github.com/hashicorp/consul"
