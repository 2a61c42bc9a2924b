"""A workload that speaks to the SPIFFE Workload API with py-spiffe, for the tests of tests/spire.

The socket is SPIFFE_ENDPOINT_SOCKET. Each answer is one line of JSON on standard output, as main.go beside it prints them;
what goes wrong is a sentence on standard error and exit code 1.
"""

import json
import sys
import threading

from cryptography import x509
from spiffe import (
    JwtSource,
    JwtSvid,
    WorkloadApiClient,
    X509Source,
)

USAGE = """usage: client.py COMMAND
  x509                  the X.509-SVIDs, each verified with the bundles that came with it
  bundles               the X.509 bundles
  watch                 the X.509-SVIDs and bundles, again at each change, until killed
  source                the same through X509Source
  jwt AUDIENCE          a JWT-SVID, verified here and by the Workload API
  jwt-validate AUDIENCE TOKEN
  jwt-bundles           the JWT bundles"""

SECONDS = 30


def say(value):
    print(json.dumps(value), flush=True)


def verified(svid, bundle_set):
    """py-spiffe does not verify X.509-SVIDs itself: signatures from the leaf up to an authority of the SVID's own trust domain."""
    bundle = bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    chain = svid.cert_chain
    for child, parent in zip(chain, chain[1:]):
        child.verify_directly_issued_by(parent)
    for authority in bundle.x509_authorities:
        if authority.subject == chain[-1].issuer:
            chain[-1].verify_directly_issued_by(authority)
            break
    else:
        raise ValueError(f"no authority of {svid.spiffe_id.trust_domain} issued the SVID")
    names = svid.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    if uri != str(svid.spiffe_id):
        raise ValueError(f"{uri} is not {svid.spiffe_id}")
    return {
        "id": str(svid.spiffe_id),
        "serial": f"{svid.leaf.serial_number:x}",
        "not_after": int(svid.leaf.not_valid_after_utc.timestamp()),
    }


def count(bundle_set):
    return {bundle.trust_domain.name: len(bundle.x509_authorities) for bundle in bundle_set.bundles}


def describe(context):
    svids = [verified(svid, context.x509_bundle_set) for svid in context.x509_svids]
    return {"svids": svids, "bundles": count(context.x509_bundle_set)}


def watch(client):
    over = threading.Event()

    def failed(error):
        say({"error": str(error)})
        over.set()

    client.stream_x509_contexts(lambda context: say(describe(context)), failed)
    over.wait()
    sys.exit(1)


def source():
    with X509Source(timeout_in_seconds=SECONDS) as found:
        news = threading.Event()
        found.subscribe_for_updates(news.set)
        while True:
            say(describe(found.get_x509_context()))
            news.wait()
            news.clear()


def jwt(client, audience):
    with JwtSource(timeout_in_seconds=SECONDS) as found:
        svid = found.fetch_svid({audience})
        bundle = found.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        here = JwtSvid.parse_and_validate(svid.token, bundle, {audience})
        there = client.validate_jwt_svid(svid.token, audience)
        say(
            {
                "id": str(svid.spiffe_id),
                "audience": sorted(svid.audience),
                "expiry": svid.expiry,
                "validated_here": str(here.spiffe_id),
                "validated_there": str(there.spiffe_id),
                "token": svid.token,
            }
        )


def run(command, *rest):
    client = WorkloadApiClient(default_timeout=SECONDS)
    match (command, *rest):
        case ("x509",):
            say(describe(client.fetch_x509_context()))
        case ("bundles",):
            say({"bundles": count(client.fetch_x509_bundles())})
        case ("watch",):
            watch(client)
        case ("source",):
            source()
        case ("jwt", audience):
            jwt(client, audience)
        case ("jwt-validate", audience, token):
            say({"id": str(client.validate_jwt_svid(token, audience).spiffe_id)})
        case ("jwt-bundles",):
            bundles = client.fetch_jwt_bundles().bundles
            say({"bundles": {b.trust_domain.name: sorted(b.jwt_authorities) for b in bundles}})
        case _:
            sys.exit(USAGE)


if __name__ == "__main__":
    try:
        run(*(sys.argv[1:] or [""]))
    except Exception as error:  # One sentence for the test that waits for it.
        sys.exit(f"{type(error).__name__}: {error}")
