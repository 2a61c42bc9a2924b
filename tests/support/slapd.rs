//! A real OpenLDAP server for one test: Debian's `slapd` as an ordinary process, free ports, a folder and a configuration of its own.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::fmt::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running directory, killed and cleaned away at the end.
pub struct Slapd {
    child: Option<Child>,
    folder: PathBuf,
    /// LDAP, with StartTLS.
    pub port: u16,
    /// LDAPS.
    pub tls_port: u16,
}

/// The directory's certificate and key as PEM.
pub struct Certified<'a> {
    pub chain: &'a str,
    pub key: &'a str,
}

const PATIENCE: Duration = Duration::from_secs(60);

/// Anybody may search below `ou=users`; below `ou=staff` only `cn=gateway` may.
const RULES: &str = r#"
access to attrs=userPassword by anonymous auth by * none
access to dn.subtree="ou=staff,dc=shop,dc=test" by dn.exact="cn=gateway,dc=shop,dc=test" read by * none
access to * by * read
"#;

impl Slapd {
    /// Starts a directory with these people, each a distinguished name, a `uid` and a password, and waits until it answers.
    pub fn start(certified: &Certified<'_>, people: &[(&str, &str, &str)]) -> Self {
        let folder = std::env::temp_dir().join(format!("wardgate-slapd-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(folder.join("data")).unwrap();
        let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Self { child: None, folder, port: port(), tls_port: port() };
        let at = |name: &str| server.folder.join(name).display().to_string();
        std::fs::write(at("chain.pem"), certified.chain).unwrap();
        std::fs::write(at("key.pem"), certified.key).unwrap();
        let configuration = format!(
            "include /etc/ldap/schema/core.schema\n\
             include /etc/ldap/schema/cosine.schema\n\
             include /etc/ldap/schema/inetorgperson.schema\n\
             modulepath /usr/lib/ldap\n\
             moduleload back_mdb\n\
             TLSCertificateFile {}\n\
             TLSCertificateKeyFile {}\n\
             database mdb\n\
             maxsize 16777216\n\
             suffix \"dc=shop,dc=test\"\n\
             directory {}\n\
             {RULES}",
            at("chain.pem"),
            at("key.pem"),
            at("data"),
        );
        std::fs::write(at("slapd.conf"), configuration).unwrap();
        std::fs::write(at("people.ldif"), entries(people)).unwrap();
        let loaded = command("slapadd")
            .args(["-q", "-f", &at("slapd.conf"), "-l", &at("people.ldif")])
            .output()
            .expect("OpenLDAP is needed by this test: apt-get install slapd");
        assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
        server.resume();
        server
    }

    /// Starts it again where it was.
    pub fn resume(&mut self) {
        let urls = format!("ldap://127.0.0.1:{}/ ldaps://127.0.0.1:{}/", self.port, self.tls_port);
        let child = command("slapd")
            .args(["-d", "0", "-h", &urls, "-f"])
            .arg(self.folder.join("slapd.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let since = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err()
            || TcpStream::connect(("127.0.0.1", self.tls_port)).is_err()
        {
            assert!(since.elapsed() < PATIENCE, "slapd does not come up");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Kills it.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// It hears everything and answers nothing.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Slapd {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// It lies where only the superuser's path looks.
fn command(name: &str) -> Command {
    let place = Path::new("/usr/sbin").join(name);
    Command::new(if place.exists() { place } else { name.into() })
}

fn entries(people: &[(&str, &str, &str)]) -> String {
    use base64::Engine as _;
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let mut ldif = String::from(
        "dn: dc=shop,dc=test\nobjectClass: dcObject\nobjectClass: organization\no: shop\ndc: shop\n\n",
    );
    for unit in ["users", "staff"] {
        let _ = writeln!(
            ldif,
            "dn: ou={unit},dc=shop,dc=test\nobjectClass: organizationalUnit\nou: {unit}\n"
        );
    }
    for (name, uid, password) in people {
        let _ = writeln!(
            ldif,
            "dn:: {}\nobjectClass: inetOrgPerson\nsn: Person\nuid:: {}\nuserPassword:: {}\n",
            encoded(name),
            encoded(uid),
            encoded(password),
        );
    }
    ldif
}
