// Package nri is the plugin by which a Kubernetes runtime (containerd, CRI-O) tells the
// agent of containers: the Node Resource Interface. It connects to the runtime, and
//
//   - has the OCI hook put into each container that must not run unguarded, when the
//     container is created;
//   - announces a container when it starts, while its first process waits;
//   - announces what runs already, when it connects;
//   - says when a container was removed.
//
// It owns the connection, what becomes of the runtime's messages, and how long the
// runtime is made to wait. It must not own what a container's tenant is, nor anything
// about guarding: that is [Agent]'s, which internal/guard is in the end.
//
// A plugin is not a gate. A runtime goes on without one that is away or too slow, so
// what must hold then is the hook's. The runtime serves one event of the node at a
// time, and so every handler here answers within a part of the runtime's patience,
// whatever the agent does.
//
// Lock order: Plugin.mu, expected.mu and round.mu are never held together, and none
// while the agent is called.
package nri
