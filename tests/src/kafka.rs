//! A real Kafka: one broker of its own, and its own tools to make topics and to read them.

use crate::identity::{AUDIENCE, ISSUER, Identity, Signer};
use crate::pki::Authority;
use crate::ports;
use crate::proxy::Proxy;
use crate::{Deployment, Part, eventually, finally};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Name and password that the broker knows, over SASL.
pub const USER: (&str, &str) = ("sluice", "a-secret-of-the-tests");
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Stands for the value of a message that has none.
pub const NO_VALUE: &str = "no-value";
const CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";
const GROUPS: &str = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
/// A reader that is told nothing for so long has read everything: longer than a busy machine needs to join.
const IDLE: &str = "8000";

/// What the console consumer tells of a message beside its value.
const SHOWN: [&str; 5] = [
    "print.timestamp=true",
    "print.partition=true",
    "print.offset=true",
    "print.headers=true",
    "print.key=true",
];

/// A broker with its data in a directory of its own. Dropping it kills it.
#[derive(Debug)]
pub struct Kafka {
    dir: TempDir,
    ports: Ports,
    child: Option<Child>,
    /// Whose tokens it takes.
    signer: Signer,
    authority: Authority,
    /// Before a listener of its own, which the broker advertises as the proxy's.
    pub proxy: Proxy,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    plain: u16,
    controller: u16,
    tls: u16,
    sasl: u16,
    /// TLS that asks for no certificate.
    open: u16,
    /// Passwords without TLS.
    bare: u16,
    /// What the proxy leads to.
    behind: u16,
}

/// One message as a consumer of Kafka's own sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub partition: u32,
    pub offset: u64,
    pub timestamp: u64,
    pub headers: BTreeMap<String, String>,
    /// None where it has no key.
    pub key: Option<String>,
    pub value: Value,
}

impl Kafka {
    /// Starts one, and waits until it answers.
    ///
    /// # Panics
    /// Where it does not.
    pub async fn start() -> Self {
        let dir = TempDir::new().expect("a directory");
        let authority = Authority::new(dir.path(), "ca");
        authority.sign_local("broker");
        authority.sign_local("client");
        let ports = Ports {
            plain: ports::one(),
            controller: ports::one(),
            tls: ports::one(),
            sasl: ports::one(),
            open: ports::one(),
            bare: ports::one(),
            behind: ports::one(),
        };
        let kafka = Self {
            proxy: Proxy::start(ports.behind).await,
            ports,
            child: None,
            signer: Signer::new(),
            authority,
            dir,
        };
        std::fs::write(kafka.properties(), kafka.config()).expect("written");
        std::fs::write(kafka.dir.path().join("jwks.json"), kafka.signer.public_keys()).expect("written");
        let (name, password) = USER;
        let scram = |hash: &str| format!("SCRAM-SHA-{hash}=[name={name},password={password}]");
        let (long, short) = (scram("512"), scram("256"));
        let properties = kafka.properties().display().to_string();
        let format = [
            "format",
            "--cluster-id",
            "AAAAAAAAAAAAAAAAAAAAAA",
            "--config",
            &properties,
            "--add-scram",
            &long,
            "--add-scram",
            &short,
        ];
        kafka.tool("kafka.tools.StorageTool", &format).await;
        kafka.brought_up().await
    }

    async fn brought_up(mut self) -> Self {
        self.bring_up().await;
        self
    }

    /// Starts it again on the same data.
    ///
    /// # Panics
    /// Where it does not answer in time.
    pub async fn bring_up(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = File::options().create(true).append(true).open(self.log());
        let log = log.expect("a file");
        let mut command = java("-Xmx512m", "kafka.Kafka");
        let child = command
            .arg(self.properties())
            .env("JAVA_TOOL_OPTIONS", self.allowed())
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a file"))
            .stdout(log)
            .spawn();
        self.child = Some(child.expect("Java runs: `make setup` installs it"));
        let address = self.brokers();
        eventually("the broker answers", START_DEADLINE, async || {
            TcpStream::connect(&address).ok()
        })
        .await;
    }

    /// A broker reads the keys of tokens from nowhere that it was not told beside its config.
    fn allowed(&self) -> String {
        let keys = self.dir.path().join("jwks.json").display().to_string();
        let name = "org.apache.kafka.sasl.oauthbearer.allowed";
        format!("-D{name}.urls=file:{keys} -D{name}.files={keys}")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Of the broker's process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// `STOP`, `CONT`.
    ///
    /// # Panics
    /// Where it does not run.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("it runs");
    }

    /// The broker without TLS or passwords.
    #[must_use]
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.ports.plain)
    }

    /// The same through [`Self::proxy`], also for those who ask it where partitions are.
    #[must_use]
    pub fn proxied_brokers(&self) -> String {
        format!("127.0.0.1:{}", self.proxy.port())
    }

    /// The same with TLS, which asks for a certificate.
    #[must_use]
    pub fn tls_brokers(&self) -> String {
        format!("127.0.0.1:{}", self.ports.tls)
    }

    /// The same with TLS, which asks for [`USER`].
    #[must_use]
    pub fn sasl_brokers(&self) -> String {
        format!("127.0.0.1:{}", self.ports.sasl)
    }

    /// The same with TLS, which asks for no certificate.
    #[must_use]
    pub fn open_brokers(&self) -> String {
        format!("127.0.0.1:{}", self.ports.open)
    }

    /// The same with [`USER`]'s password by SCRAM-SHA-256, without TLS.
    #[must_use]
    pub fn bare_brokers(&self) -> String {
        format!("127.0.0.1:{}", self.ports.bare)
    }

    /// Who gives out tokens that the broker takes, each for so many seconds.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[must_use]
    pub fn identity(&self, seconds: u64) -> Identity {
        self.authority.sign_local("identity");
        Identity::start(self.dir.path(), self.signer.clone(), seconds)
    }

    /// A file of its authority: `ca.crt`, `client.crt`, `client.key`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a topic; `config` are `key=value`.
    ///
    /// # Panics
    /// Where it cannot be made.
    pub async fn topic(&self, name: &str, partitions: u32, config: &[&str]) {
        let (brokers, partitions) = (self.brokers(), partitions.to_string());
        let mut args = vec!["--bootstrap-server", &brokers, "--create", "--topic", name];
        args.extend(["--partitions", &partitions]);
        config.iter().for_each(|one| args.extend(["--config", one]));
        self.tool("org.apache.kafka.tools.TopicCommand", &args).await;
    }

    /// Everything that is in a topic, by partition and offset, as Kafka's console consumer reads it.
    ///
    /// # Panics
    /// Where it cannot be read, or a message is none of JSON.
    pub async fn read(&self, topic: &str) -> Vec<Message> {
        let brokers = self.brokers();
        let mut args = vec![
            "--bootstrap-server",
            &brokers,
            "--topic",
            topic,
            "--from-beginning",
        ];
        args.extend(["--timeout-ms", IDLE]);
        SHOWN.iter().for_each(|shown| args.extend(["--property", shown]));
        let told = self.tool(CONSUMER, &args).await;
        let mut messages: Vec<Message> = told.lines().map(Message::parse).collect();
        messages.sort_by_key(|one| (one.partition, one.offset));
        messages
    }

    /// Sends messages, each a key and a value without tabs and line ends, by Kafka's console producer. [`NO_VALUE`] is a
    /// message without one.
    ///
    /// # Panics
    /// Where they are not all taken.
    pub async fn write(&self, topic: &str, messages: impl IntoIterator<Item = (String, String)>) {
        let text: String = messages
            .into_iter()
            .map(|(key, value)| format!("{key}\t{value}\n"))
            .collect();
        let brokers = self.brokers();
        let marker = format!("null.marker={NO_VALUE}");
        let mut args = vec!["--bootstrap-server", &brokers, "--topic", topic];
        for property in ["parse.key=true", "key.separator=\t", &marker] {
            args.extend(["--property", property]);
        }
        args.extend(["--producer-property", "acks=all"]);
        self.told("org.apache.kafka.tools.ConsoleProducer", &args, text.into_bytes())
            .await;
    }

    /// The offsets of a consumer group, by topic and partition.
    ///
    /// # Panics
    /// Where the broker does not say.
    pub async fn offsets(&self, group: &str) -> BTreeMap<(String, u32), u64> {
        let brokers = self.brokers();
        let args = [
            "--bootstrap-server",
            &brokers,
            "--describe",
            "--offsets",
            "--group",
            group,
        ];
        let told = self.tool(GROUPS, &args).await;
        // GROUP TOPIC PARTITION CURRENT-OFFSET …
        let line = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, topic, partition, offset, ..] = words[..] else {
                return None;
            };
            let numbers = partition.parse().ok().zip(offset.parse().ok());
            let (partition, offset) = numbers.filter(|_| name == group)?;
            Some(((topic.to_owned(), partition), offset))
        };
        told.lines().filter_map(line).collect()
    }

    /// How often the members of a group were given partitions anew. Nobody may commit meanwhile.
    ///
    /// # Panics
    /// Where the broker does not say.
    pub async fn generation(&self, group: &str) -> u64 {
        let brokers = self.brokers();
        let args = [
            "--bootstrap-server",
            &brokers,
            "--topic",
            "__consumer_offsets",
            "--from-beginning",
            "--formatter",
            "org.apache.kafka.tools.consumer.GroupMetadataMessageFormatter",
            "--timeout-ms",
            IDLE,
        ];
        let told = self.tool(CONSUMER, &args).await;
        // One after the other, with nothing between.
        let told: Vec<Value> = serde_json::Deserializer::from_str(&told)
            .into_iter()
            .collect::<Result<_, _>>()
            .expect("JSON");
        let of_group = told.iter().filter(|one| one["key"]["data"]["group"] == group);
        let last = of_group
            .filter_map(|one| one["value"]["data"]["generation"].as_u64())
            .next_back();
        last.unwrap_or_else(|| panic!("no group {group}: {told:?}"))
    }

    /// Sets a group's offsets to where a topic begins.
    ///
    /// # Panics
    /// Where it cannot: the group has a member.
    pub async fn rewind(&self, group: &str, topic: &str) {
        let brokers = self.brokers();
        let args = ["--bootstrap-server", &brokers, "--group", group, "--topic", topic];
        let reset = ["--reset-offsets", "--to-earliest", "--execute"];
        self.tool(GROUPS, &[args.as_slice(), &reset].concat()).await;
    }

    /// Deletes a topic, and waits until it is gone.
    ///
    /// # Panics
    /// Where it cannot be deleted.
    pub async fn delete_topic(&self, name: &str) {
        let brokers = self.brokers();
        let class = "org.apache.kafka.tools.TopicCommand";
        let args = ["--bootstrap-server", &brokers, "--delete", "--topic", name];
        self.tool(class, &args).await;
        eventually("the topic is gone", START_DEADLINE, async || {
            let told = self
                .tool(class, &["--bootstrap-server", &brokers, "--list"])
                .await;
            (!told.lines().any(|line| line == name)).then_some(())
        })
        .await;
    }

    /// Deletes a group's offsets in a topic.
    ///
    /// # Panics
    /// Where it cannot: the group has a member.
    pub async fn forget_offsets(&self, group: &str, topic: &str) {
        let brokers = self.brokers();
        let args = ["--bootstrap-server", &brokers, "--group", group, "--topic", topic];
        let args = [args.as_slice(), &["--delete-offsets"]].concat();
        // The tool ends well where the broker refuses: while it believes that the group has a member, say.
        finally("the group's offsets are deleted", START_DEADLINE, async || {
            let told = self.tool(GROUPS, &args).await;
            if told.contains("Request succeed") {
                Ok(())
            } else {
                Err(told)
            }
        })
        .await;
    }

    /// Deletes the messages of a partition before an offset.
    ///
    /// # Panics
    /// Where the broker does not.
    pub async fn delete_before(&self, topic: &str, partition: u32, offset: u64) {
        let file = self.dir.path().join("deleted.json");
        let what = serde_json::json!({
            "version": 1,
            "partitions": [{"topic": topic, "partition": partition, "offset": offset}],
        });
        std::fs::write(&file, what.to_string()).expect("written");
        let (brokers, file) = (self.brokers(), file.display().to_string());
        let args = ["--bootstrap-server", &brokers, "--offset-json-file", &file];
        self.tool("org.apache.kafka.tools.DeleteRecordsCommand", &args)
            .await;
    }

    /// What a tool of Kafka's prints.
    async fn tool(&self, class: &'static str, args: &[&str]) -> String {
        self.told(class, args, Vec::new()).await
    }

    /// The same of one that reads.
    async fn told(&self, class: &'static str, args: &[&str], text: Vec<u8>) -> String {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let ran = tokio::task::spawn_blocking(move || {
            let mut command = java("-Xmx256m", class);
            command
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let mut child = command.spawn()?;
            let mut stdin = child.stdin.take().expect("piped");
            // A tool that does not read has ended before it is told all.
            let writing = std::thread::spawn(move || stdin.write_all(&text).ok());
            let output = child.wait_with_output();
            writing.join().expect("written");
            output
        });
        let output = ran
            .await
            .expect("it ran")
            .expect("Java runs: `make setup` installs it");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "{class}: {out}\n{err}\n{}",
            self.last_words()
        );
        out
    }

    /// The end of the broker's log, for messages.
    #[must_use]
    pub fn last_words(&self) -> String {
        crate::service::tail(&self.log())
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("broker.log")
    }

    fn properties(&self) -> PathBuf {
        self.dir.path().join("server.properties")
    }

    fn config(&self) -> String {
        let Ports {
            plain,
            controller,
            tls,
            sasl,
            open,
            bare,
            behind,
        } = self.ports;
        let proxied = self.proxy.port();
        let (name, password) = USER;
        let dir = self.dir.path();
        // Java wants the key and its certificates in one file.
        let pem = ["broker.key", "broker.crt", "ca.crt"].map(|name| std::fs::read_to_string(dir.join(name)));
        let pem: String = pem.into_iter().map(|text| text.expect("a file")).collect();
        std::fs::write(dir.join("broker.pem"), pem).expect("written");
        let dir = dir.display();
        // A broker that was killed is taken back by its controller once its session is over: by Kafka's own 9 s, each
        // start after a kill would take so long.
        let module = "org.apache.kafka.common.security";
        let public = format!(
            "PLAINTEXT://127.0.0.1:{plain},SSL://127.0.0.1:{tls},SASL_SSL://127.0.0.1:{sasl},OPEN://127.0.0.1:{open},\
             SASL_PLAINTEXT://127.0.0.1:{bare}"
        );
        format!(
            "process.roles=broker,controller\nnode.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\ncontroller.listener.names=CONTROLLER\n\
             listeners=CONTROLLER://127.0.0.1:{controller},{public},PROXIED://127.0.0.1:{behind}\n\
             advertised.listeners={public},PROXIED://127.0.0.1:{proxied}\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL,OPEN:SSL,\
             SASL_PLAINTEXT:SASL_PLAINTEXT\n\
             inter.broker.listener.name=PLAINTEXT\nlog.dirs={dir}/data\nauto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\n\
             broker.session.timeout.ms=3000\nbroker.heartbeat.interval.ms=500\n\
             ssl.keystore.type=PEM\nssl.keystore.location={dir}/broker.pem\n\
             ssl.truststore.type=PEM\nssl.truststore.location={dir}/ca.crt\n\
             listener.name.ssl.ssl.client.auth=required\nsasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER\n\
             listener.name.sasl_plaintext.sasl.enabled.mechanisms=SCRAM-SHA-256\n\
             listener.name.sasl_plaintext.scram-sha-256.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
             listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
             listener.name.sasl_ssl.plain.sasl.jaas.config={module}.plain.PlainLoginModule required user_{name}=\"{password}\";\n\
             listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
             listener.name.sasl_ssl.oauthbearer.sasl.jaas.config={module}.oauthbearer.OAuthBearerLoginModule required;\n\
             listener.name.sasl_ssl.oauthbearer.sasl.server.callback.handler.class={module}.oauthbearer.OAuthBearerValidatorCallbackHandler\n\
             sasl.oauthbearer.jwks.endpoint.url=file:{dir}/jwks.json\nsasl.oauthbearer.expected.audience={AUDIENCE}\n\
             sasl.oauthbearer.expected.issuer={ISSUER}\n"
        )
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Message {
    /// A line of the console consumer: time, partition, offset, headers, key, value, with tabs between.
    fn parse(line: &str) -> Self {
        let wrong = || panic!("not a message: {line}");
        let parts: Vec<&str> = line.splitn(6, '\t').collect();
        let [time, partition, offset, headers, key, value] = parts[..] else {
            return wrong();
        };
        let number = |text: &str| -> u64 {
            let digits = text.rsplit(':').next().and_then(|text| text.parse().ok());
            digits.unwrap_or_else(|| panic!("not a message: {line}"))
        };
        let header = |pair: &str| {
            let (name, value) = pair.split_once(':').unwrap_or((pair, ""));
            (name.to_owned(), value.to_owned())
        };
        Self {
            partition: u32::try_from(number(partition)).expect("a partition"),
            offset: number(offset),
            timestamp: number(time),
            headers: headers.split(',').map(header).collect(),
            key: (key != "null").then(|| key.to_owned()),
            value: serde_json::from_str(value).unwrap_or_else(|_| panic!("not JSON: {line}")),
        }
    }

    /// A header.
    ///
    /// # Panics
    /// Where it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }
}

fn java(heap: &str, class: &str) -> Command {
    let local = std::env::var_os("SLUICE_LOCAL").map(PathBuf::from);
    let local = local.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.local"));
    let libs = local.join("kafka/libs");
    assert!(libs.is_dir(), "{} is missing: run `make setup`", libs.display());
    let mut command = Command::new("java");
    // The first compiler alone: processes that live for seconds never earn the second.
    command.args([heap, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]);
    command.arg(libs.join("*")).arg(class);
    command
}

/// How long a normalizer may take that has to join the group, be given partitions and catch up.
pub const WORKED_ON: Duration = Duration::from_secs(60);

/// The log's partitions that a normalizer says it works on; none while it does not answer.
pub async fn partitions(deployment: &Deployment, part: Part) -> Vec<u32> {
    let told = deployment.admin(part).get("/metrics").await;
    let text = told.map_or_else(|_| String::new(), |told| told.text());
    let of = |line: &str| {
        let rest = line.strip_prefix("sluice_unsettled{partition=\"")?;
        rest.split('"').next()?.parse().ok()
    };
    text.lines().filter_map(of).collect()
}

/// Waits until a normalizer says that so many of the log's partitions are worked on there.
///
/// # Panics
/// Where it does not within [`WORKED_ON`].
pub async fn works_on(deployment: &Deployment, part: Part, count: usize) {
    let what = format!("{part:?} works on {count} partitions");
    eventually(&what, WORKED_ON, async || {
        (partitions(deployment, part).await.len() == count).then_some(())
    })
    .await;
}
