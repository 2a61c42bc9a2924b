//! Rule 48: keys and signatures that our own libraries would not even make. OpenSSL makes them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use wardgate::identity::TrustBundle;

use crate::Judge;

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    fn new() -> Self {
        let name = format!("wardgate-openssl-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(&self.0)
            .stdin(Stdio::null())
            .output()
            .expect("openssl is needed by this test: apt-get install openssl");
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn key(&self, name: &str, kind: &[&str]) {
        let out = format!("{name}-key.pem");
        self.openssl(&[&["genpkey", "-out", &out][..], kind].concat());
    }

    fn root(&self, digest: &str) -> CertificateDer<'static> {
        self.openssl(&[
            "req",
            "-x509",
            "-key",
            "root-key.pem",
            "-out",
            "root.pem",
            "-subj",
            "/CN=root",
            digest,
            "-days",
            "2",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
        ]);
        read(&self.0.join("root.pem"))
    }

    fn leaf(&self, digest: &str) -> CertificateDer<'static> {
        let extensions = "subjectAltName=critical,URI:spiffe://a.test/web\n\
            keyUsage=critical,digitalSignature\n\
            basicConstraints=critical,CA:FALSE\n\
            extendedKeyUsage=serverAuth,clientAuth\n";
        std::fs::write(self.0.join("leaf.cnf"), extensions).unwrap();
        self.openssl(&[
            "req",
            "-new",
            "-key",
            "leaf-key.pem",
            "-out",
            "leaf.csr",
            "-subj",
            "/CN=x",
        ]);
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            "leaf.csr",
            "-CA",
            "root.pem",
            "-CAkey",
            "root-key.pem",
            "-out",
            "leaf.pem",
            "-days",
            "1",
            "-extfile",
            "leaf.cnf",
            "-CAcreateserial",
            digest,
        ]);
        read(&self.0.join("leaf.pem"))
    }
}

fn read(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
const P384: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"];
const P521: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"];
const RSA_1024: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"];
const RSA_2048: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];

#[test]
fn sha_2_and_long_keys_only() {
    let rules: &[(&str, &[&str], &str, &str)] = &[
        ("48 ECDSA P-256 with SHA-256", P256, "-sha256", "ok"),
        ("48 ECDSA P-256 with SHA-384", P256, "-sha384", "ok"),
        ("48 ECDSA P-384 with SHA-384", P384, "-sha384", "ok"),
        ("48 RSA 2048 with SHA-256", RSA_2048, "-sha256", "ok"),
        ("48 RSA 2048 with SHA-512", RSA_2048, "-sha512", "ok"),
        ("48 ECDSA with SHA-1", P256, "-sha1", "signature_algorithm"),
        ("48 RSA with SHA-1", RSA_2048, "-sha1", "signature_algorithm"),
        ("48 ECDSA P-521", P521, "-sha512", "signature_algorithm"),
        // Its algorithm is on the list, its size is not: the signature does not count.
        ("48 RSA 1024", RSA_1024, "-sha256", "bad_signature"),
    ];
    for (rule, kind, digest, expected) in rules {
        let folder = Folder::new();
        folder.key("root", kind);
        folder.key("leaf", P256);
        let root = folder.root(digest);
        let leaf = folder.leaf(digest);
        let bundle = TrustBundle::new("a.test".parse().unwrap(), vec![root]);
        assert_eq!(Judge::of([bundle]).code(&[leaf]), *expected, "{rule}");
    }
}
