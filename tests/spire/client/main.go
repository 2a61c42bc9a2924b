// A workload that speaks to the SPIFFE Workload API with go-spiffe, for the tests of tests/spire.
//
// The socket is SPIFFE_ENDPOINT_SOCKET. Each answer is one line of JSON on standard output; what goes wrong is a sentence on
// standard error and exit code 1.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"
)

type object = map[string]any

const usage = `usage: client COMMAND
  x509                      the X.509-SVIDs, each verified with the bundles that came with it
  bundles                   the X.509 bundles
  watch                     the X.509-SVIDs and bundles, again at each change, until killed
  call URL SPIFFE-ID        GET over mTLS, with whom it must be at the other end
  serve SPIFFE-ID           answers such calls of that one peer on a free port, until killed
  jwt AUDIENCE              a JWT-SVID, verified here and by the Workload API
  jwt-validate AUDIENCE TOKEN
  jwt-bundles               the JWT bundles`

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	command, rest := "", arguments
	if len(arguments) > 0 {
		command, rest = arguments[0], arguments[1:]
	}
	// What is asked once has to be answered soon; the rest runs until it is killed.
	once, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	switch {
	case command == "x509" && len(rest) == 0:
		return fetch(once)
	case command == "bundles" && len(rest) == 0:
		return bundles(once)
	case command == "watch" && len(rest) == 0:
		return watch(ctx)
	case command == "call" && len(rest) == 2:
		return call(once, rest[0], rest[1])
	case command == "serve" && len(rest) == 1:
		return serve(ctx, rest[0])
	case command == "jwt" && len(rest) == 1:
		return jwt(once, rest[0])
	case command == "jwt-validate" && len(rest) == 2:
		return jwtValidate(once, rest[0], rest[1])
	case command == "jwt-bundles" && len(rest) == 0:
		return jwtBundles(once)
	}
	return errors.New(usage)
}

func say(value object) error {
	return json.NewEncoder(os.Stdout).Encode(value)
}

func describe(svids []*x509svid.SVID, set *x509bundle.Set) (object, error) {
	told := []object{}
	for _, svid := range svids {
		id, _, err := x509svid.Verify(svid.Certificates, set)
		if err != nil {
			return nil, fmt.Errorf("the SVID does not hold: %w", err)
		}
		told = append(told, object{
			"id":        id.String(),
			"hint":      svid.Hint,
			"serial":    fmt.Sprintf("%x", svid.Certificates[0].SerialNumber),
			"not_after": svid.Certificates[0].NotAfter.Unix(),
		})
	}
	return object{"svids": told, "bundles": count(set)}, nil
}

func count(set *x509bundle.Set) object {
	roots := object{}
	for _, bundle := range set.Bundles() {
		roots[bundle.TrustDomain().Name()] = len(bundle.X509Authorities())
	}
	return roots
}

func fetch(ctx context.Context) error {
	found, err := workloadapi.FetchX509Context(ctx)
	if err != nil {
		return err
	}
	told, err := describe(found.SVIDs, found.Bundles)
	if err != nil {
		return err
	}
	return say(told)
}

func bundles(ctx context.Context) error {
	set, err := workloadapi.FetchX509Bundles(ctx)
	if err != nil {
		return err
	}
	return say(object{"bundles": count(set)})
}

type watcher struct{}

func (watcher) OnX509ContextUpdate(found *workloadapi.X509Context) {
	told, err := describe(found.SVIDs, found.Bundles)
	if err != nil {
		told = object{"error": err.Error()}
	}
	_ = say(told)
}

func (watcher) OnX509ContextWatchError(err error) {
	_ = say(object{"error": err.Error(), "code": status.Code(err).String()})
}

func watch(ctx context.Context) error {
	return workloadapi.WatchX509Context(ctx, watcher{})
}

func call(ctx context.Context, url, expected string) error {
	id, err := spiffeid.FromString(expected)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id))
	client := http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	return say(object{"status": answer.StatusCode, "body": string(body)})
}

func serve(ctx context.Context, expected string) error {
	id, err := spiffeid.FromString(expected)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	config := tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(id))
	config.NextProtos = []string{"h2", "http/1.1"}
	if err := say(object{"address": listener.Addr().String()}); err != nil {
		return err
	}
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, err := x509svid.IDFromCert(r.TLS.PeerCertificates[0])
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(w).Encode(object{"peer": peer.String(), "path": r.URL.Path})
	})}
	return server.Serve(tls.NewListener(listener, config))
}

func jwt(ctx context.Context, audience string) error {
	source, err := workloadapi.NewJWTSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return err
	}
	token := svid.Marshal()
	here, err := jwtsvid.ParseAndValidate(token, source, []string{audience})
	if err != nil {
		return fmt.Errorf("go-spiffe refuses the token: %w", err)
	}
	there, err := workloadapi.ValidateJWTSVID(ctx, token, audience)
	if err != nil {
		return fmt.Errorf("the Workload API refuses its own token: %w", err)
	}
	return say(object{
		"id":              svid.ID.String(),
		"hint":            svid.Hint,
		"audience":        svid.Audience,
		"expiry":          svid.Expiry.Unix(),
		"validated_here":  here.ID.String(),
		"validated_there": there.ID.String(),
		"token":           token,
	})
}

func jwtValidate(ctx context.Context, audience, token string) error {
	svid, err := workloadapi.ValidateJWTSVID(ctx, token, audience)
	if err != nil {
		return err
	}
	return say(object{"id": svid.ID.String()})
}

func jwtBundles(ctx context.Context) error {
	set, err := workloadapi.FetchJWTBundles(ctx)
	if err != nil {
		return err
	}
	keys := object{}
	for _, bundle := range set.Bundles() {
		keys[bundle.TrustDomain().Name()] = keyIDs(bundle)
	}
	return say(object{"bundles": keys})
}

func keyIDs(bundle *jwtbundle.Bundle) []string {
	names := []string{}
	for name := range bundle.JWTAuthorities() {
		names = append(names, name)
	}
	return names
}
