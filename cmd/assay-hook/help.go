package main

const help = `Usage: assay-hook [flags] STAGE

Announces a container to the Assay agent and waits until the agent guards it.
A container runtime runs it as an OCI hook, with the container's state as JSON
on standard input. Any exit code but 0 stops the container.

STAGE is where the hook stands in config.json or in a hooks.d file:
  createRuntime   the usual one
  prestart        the same moment, for runtimes that predate createRuntime
Other stages are too early, too late, or inside the container.

Flags:
  --socket PATH            the agent's socket (default /run/assay/agent.sock)
  --namespace NAME         what selects the tenant; default none. Annotations
                           never do without --runtime: a container's owner can
                           set them
  --runtime NAME           containerd or cri-o: the namespace is the pod's, from
                           the annotation that this runtime's Kubernetes
                           service writes over whatever a pod has there. A
                           container without it (ctr run) does not start
  --exempt-namespace NS    needs --runtime; may be repeated; an exact name. While
                           the agent is missing, such a container starts at
                           once: for the agent's own pod. A pod's sandbox does,
                           too: it runs nothing of the pod
  --timeout 30s            how long to wait for the agent, all in all
  --wait 5s                how much of this to spend on waiting for an agent that
                           is missing, as when it is being replaced; 0 is not
                           at all
  --on-agent-missing fail  or allow: start the container unguarded, with a
                           warning, if the agent is still missing then: nothing
                           listens on the socket, or the agent is stopping.
                           A refusal, a timeout or a socket that is not root's
                           always fails
  --version                print the version
  --help                   print this text

Exit codes: 0 the container may start; 1 it must not: the reason is on stderr
(or in the system log, where the runtime throws stderr away); 2 wrong arguments.

Installing it:
  assay install podman, containerd or cri-o
By hand, in a bundle's config.json:
  "hooks": {"createRuntime": [{
    "path": "/usr/local/bin/assay-hook",
    "args": ["assay-hook", "--namespace", "web", "createRuntime"]
  }]}
`
