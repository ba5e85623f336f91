// Package keeper lets containers stay guarded while the agent is away.
//
// A fanotify group lives as long as any process has a descriptor of it: events queue,
// openers wait, marks stay. The keeper is a small process that holds a second
// descriptor of each container's group and does nothing with it while the agent lives.
// When the agent is gone, by its own will or not, the keeper
//
//  1. takes the kernel's ignore marks away and then lets go of the leases under them,
//     of which it has copies: so no mark is ever without its lease;
//  2. waits for the next agent, and gives it everything;
//  3. answers a container's events by its tenant's fallback if none comes within the
//     tenant's grace time, until one does.
//
// An agent that is stuck is worse than one that is dead: openers would wait for ever,
// and two processes must not answer one group, because an answer names its event by
// the number of a descriptor. So an agent that has not been heard of for the shortest
// grace time is killed.
//
// The package owns both ends: [Server] is the keeper, [Client] the agent's side of its
// socket, and [Systemd] a replacement by systemd's descriptor store. It must not own
// what is in an entry's state, nor know of tenants, policies and files:
// internal/guard's business.
//
// Lock order: Server.fallbacks, then Server.mu. Nothing that could wait for a
// container's filesystem happens under them.
package keeper
