//! What a decoded item says, as JSON with the names of the specification's pages.

use cloche_proto::frame::{Frame, TableEntry};
use cloche_proto::keeper::ToKeeper;
use cloche_proto::message::{Step, ToAgent, ToHost};
use cloche_proto::warden::{Jail, RootOp, ToSupervisor, ToWarden};
use serde_json::{json, Value};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hexes(list: &[Vec<u8>]) -> Vec<String> {
    list.iter().map(|bytes| hex(bytes)).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn table(entries: &[TableEntry]) -> Vec<Value> {
    let line = |e: &TableEntry| json!({"stream": e.stream, "received": e.received, "consumed": e.consumed, "limit": e.limit});
    entries.iter().map(line).collect()
}

pub fn frame_fields(frame: &Frame<'_>) -> Value {
    match frame {
        Frame::Attach(a) => json!({
            "type": "ATTACH", "flags": 0, "stream": 0,
            "version": a.version, "nonce": text(&a.nonce), "table": table(&a.table),
        }),
        Frame::Attached(a) => json!({
            "type": "ATTACHED", "flags": 0, "stream": 0, "version": a.version,
            "session": text(&a.session), "fresh": u8::from(a.fresh), "table": table(&a.table),
        }),
        Frame::Data {
            stream,
            offset,
            bytes,
        } => json!({
            "type": "DATA", "flags": 0, "stream": stream, "offset": offset, "bytes": hex(bytes),
        }),
        Frame::Window {
            stream,
            consumed,
            limit,
            fin,
        } => json!({
            "type": "WINDOW", "flags": u8::from(*fin), "stream": stream,
            "consumed": consumed, "limit": limit,
        }),
        Frame::Eof {
            stream,
            offset,
            aborted,
        } => json!({
            "type": "EOF", "flags": u8::from(*aborted), "stream": stream, "final": offset,
        }),
        Frame::Stop { stream } => json!({"type": "STOP", "flags": 0, "stream": stream}),
    }
}

fn step_fields(step: &Step) -> Value {
    match step {
        Step::BindDevice { name } => json!({"op": "BIND_DEVICE", "name": hex(name)}),
        Step::Mkdir {
            path,
            mode,
            uid,
            gid,
        } => json!({"op": "MKDIR", "path": hex(path), "mode": mode, "uid": uid, "gid": gid}),
        Step::Mount {
            fstype,
            source,
            target,
            flags,
            data,
        } => json!({
            "op": "MOUNT", "fstype": hex(fstype), "source": hex(source), "target": hex(target),
            "flags": flags, "data": hex(data),
        }),
        Step::SwitchRoot { path } => json!({"op": "SWITCH_ROOT", "path": hex(path)}),
        Step::WriteFile {
            path,
            mode,
            uid,
            gid,
            content,
        } => json!({
            "op": "WRITE_FILE", "path": hex(path), "mode": mode, "uid": uid, "gid": gid,
            "content": hex(content),
        }),
        Step::Symlink { target, path } => {
            json!({"op": "SYMLINK", "target": hex(target), "path": hex(path)})
        }
        Step::CopyTree { from, to, uid, gid } => {
            json!({"op": "COPY_TREE", "from": hex(from), "to": hex(to), "uid": uid, "gid": gid})
        }
        Step::Hostname { name } => json!({"op": "HOSTNAME", "name": hex(name)}),
        Step::Clock { realtime_ns } => json!({"op": "CLOCK", "realtime_ns": realtime_ns}),
        Step::Entropy { seed } => json!({"op": "ENTROPY", "seed": hex(seed)}),
        Step::Loopback => json!({"op": "LOOPBACK"}),
        Step::Interface {
            name,
            address,
            prefix,
            gateway,
        } => {
            json!({"op": "INTERFACE", "name": hex(name), "address": address, "prefix": prefix, "gateway": gateway})
        }
        Step::Sysctl { path, value } => {
            json!({"op": "SYSCTL", "path": hex(path), "value": hex(value)})
        }
        Step::Rlimit {
            resource,
            soft,
            hard,
        } => json!({"op": "RLIMIT", "resource": resource, "soft": soft, "hard": hard}),
        Step::WaitPath { path, timeout_ms } => {
            json!({"op": "WAIT_PATH", "path": hex(path), "timeout_ms": timeout_ms})
        }
        Step::Unmount { target, flags } => {
            json!({"op": "UNMOUNT", "target": hex(target), "flags": flags})
        }
        Step::Freeze => json!({"op": "FREEZE"}),
        Step::Thaw => json!({"op": "THAW"}),
        Step::CopyOnce { from, to, uid, gid } => {
            json!({"op": "COPY_ONCE", "from": hex(from), "to": hex(to), "uid": uid, "gid": gid})
        }
        Step::Settle { path } => json!({"op": "SETTLE", "path": hex(path)}),
        Step::CheckPlace { root, path } => {
            json!({"op": "CHECK_PLACE", "root": hex(root), "path": hex(path)})
        }
        Step::PutFirst {
            path,
            mode,
            content,
        } => {
            json!({"op": "PUT_FIRST", "path": hex(path), "mode": mode, "content": hex(content)})
        }
    }
}

pub fn to_agent_fields(message: &ToAgent) -> Value {
    match message {
        ToAgent::Setup { seq, steps } => {
            let steps: Vec<Value> = steps.iter().map(step_fields).collect();
            json!({"type": "SETUP", "seq": seq, "steps": steps})
        }
        ToAgent::Exec(e) => json!({
            "type": "EXEC", "job": e.job, "stdin": e.stdin, "stdout": e.stdout, "stderr": e.stderr,
            "flags": e.flags, "rows": e.rows, "cols": e.cols, "uid": e.uid, "gid": e.gid,
            "umask": e.umask, "groups": e.groups, "pids_max": e.pids_max, "cwd": hex(&e.cwd),
            "argv": hexes(&e.argv), "env": hexes(&e.env), "program": hex(&e.program),
            "keys": e.keys, "ignored": e.ignored, "nice": e.nice,
        }),
        ToAgent::Signal { job, signo } => json!({"type": "SIGNAL", "job": job, "signo": signo}),
        ToAgent::Resize { job, rows, cols } => {
            json!({"type": "RESIZE", "job": job, "rows": rows, "cols": cols})
        }
        ToAgent::Poweroff => json!({"type": "POWEROFF"}),
        ToAgent::Sync { seq } => json!({"type": "SYNC", "seq": seq}),
    }
}

pub fn to_host_fields(message: &ToHost) -> Value {
    match message {
        ToHost::Ready {
            agent_version,
            kernel,
            uptime_ns,
        } => json!({
            "type": "READY", "agent_version": hex(agent_version), "kernel": hex(kernel),
            "uptime_ns": uptime_ns,
        }),
        ToHost::SetupDone { seq } => json!({"type": "SETUP_DONE", "seq": seq}),
        ToHost::SetupFailed {
            seq,
            step,
            errno,
            what,
        } => json!({
            "type": "SETUP_FAILED", "seq": seq, "step": step, "errno": errno, "what": hex(what),
        }),
        ToHost::Started { job, pid } => json!({"type": "STARTED", "job": job, "pid": pid}),
        ToHost::Failed { job, errno, what } => {
            json!({"type": "FAILED", "job": job, "errno": errno, "what": hex(what)})
        }
        ToHost::Exited {
            job,
            kind,
            value,
            oom,
            user_ns,
            sys_ns,
            maxrss_bytes,
        } => json!({
            "type": "EXITED", "job": job, "kind": kind, "value": value, "oom": u8::from(*oom),
            "user_ns": user_ns, "sys_ns": sys_ns, "maxrss_bytes": maxrss_bytes,
        }),
        ToHost::Stopped { job, signo } => json!({"type": "STOPPED", "job": job, "signo": signo}),
        ToHost::Continued { job } => json!({"type": "CONTINUED", "job": job}),
        ToHost::Log { level, text } => json!({"type": "LOG", "level": level, "text": hex(text)}),
        ToHost::Synced { seq } => json!({"type": "SYNCED", "seq": seq}),
    }
}

fn root_fields(op: &RootOp) -> Value {
    match op {
        RootOp::Dir { path, mode } => json!({"op": "DIR", "path": hex(path), "mode": mode}),
        RootOp::Bind {
            source,
            path,
            flags,
        } => json!({"op": "BIND", "source": hex(source), "path": hex(path), "flags": flags}),
        RootOp::File {
            path,
            mode,
            content,
        } => json!({"op": "FILE", "path": hex(path), "mode": mode, "content": hex(content)}),
        RootOp::Symlink { target, path } => {
            json!({"op": "SYMLINK", "target": hex(target), "path": hex(path)})
        }
        RootOp::Tmpfs {
            path,
            size,
            mode,
            flags,
        } => {
            json!({"op": "TMPFS", "path": hex(path), "size": size, "mode": mode, "flags": flags})
        }
        RootOp::Proc { path } => json!({"op": "PROC", "path": hex(path)}),
        RootOp::Dev { path } => json!({"op": "DEV", "path": hex(path)}),
        RootOp::BindFd {
            fd_index,
            path,
            flags,
        } => json!({"op": "BIND_FD", "fd_index": fd_index, "path": hex(path), "flags": flags}),
    }
}

fn jail_fields(jail: &Jail) -> Value {
    let rlimits: Vec<Value> = jail
        .rlimits
        .iter()
        .map(|l| json!({"resource": l.resource, "soft": l.soft, "hard": l.hard}))
        .collect();
    let root: Vec<Value> = jail.root.iter().map(root_fields).collect();
    json!({
        "namespaces": jail.namespaces, "uid": jail.uid, "gid": jail.gid, "keep_caps": jail.keep_caps,
        "flags": jail.flags, "hostname": hex(&jail.hostname), "cwd": hex(&jail.cwd),
        "rlimits": rlimits, "seccomp": hex(&jail.seccomp), "root": root,
    })
}

pub fn to_warden_fields(message: &ToWarden) -> Value {
    match message {
        ToWarden::Spawn(spawn) => json!({
            "type": "SPAWN", "id": spawn.id, "name": hex(&spawn.name), "argv": hexes(&spawn.argv),
            "env": hexes(&spawn.env), "fds": spawn.fds, "exe_fd": u8::from(spawn.exe_fd),
            "cgroup": u8::from(spawn.cgroup),
            "jail": jail_fields(&spawn.jail),
        }),
        ToWarden::Kill { id, signo } => json!({"type": "KILL", "id": id, "signo": signo}),
        ToWarden::Shutdown => json!({"type": "SHUTDOWN"}),
        ToWarden::Mount {
            request,
            id,
            path,
            flags,
        } => {
            json!({"type": "MOUNT", "request": request, "id": id, "path": hex(path), "flags": flags})
        }
        ToWarden::Unmount { request, id, path } => {
            json!({"type": "UNMOUNT", "request": request, "id": id, "path": hex(path)})
        }
    }
}

pub fn to_supervisor_fields(message: &ToSupervisor) -> Value {
    match message {
        ToSupervisor::Ready => json!({"type": "READY"}),
        ToSupervisor::Spawned { id, pid } => json!({"type": "SPAWNED", "id": id, "pid": pid}),
        ToSupervisor::Failed { id, errno, what } => {
            json!({"type": "FAILED", "id": id, "errno": errno, "what": hex(what)})
        }
        ToSupervisor::Exited { id, kind, value } => {
            json!({"type": "EXITED", "id": id, "kind": kind, "value": value})
        }
        ToSupervisor::Done {
            request,
            errno,
            what,
        } => json!({"type": "DONE", "request": request, "errno": errno, "what": hex(what)}),
    }
}

pub fn to_keeper_fields(message: &ToKeeper) -> Value {
    match message {
        ToKeeper::Raw { saved, raw } => {
            json!({"type": "RAW", "saved": hex(&saved.0), "raw": hex(&raw.0)})
        }
        ToKeeper::Restored => json!({"type": "RESTORED"}),
    }
}
