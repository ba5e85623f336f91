package audit

// The operations of records. Those from OpDirty on are no openers.
const (
	OpOpen    = "open"
	OpExec    = "exec"
	OpDirty   = "dirty"   // a writer opened a file that was known to be clean; no decision
	OpScan    = "scan"    // malware in a layer, found before anybody opened it; no decision
	OpAbsence = "absence" // openers who were answered while there was no agent, all in one
	OpStart   = "start"   // a container that could not be guarded, and whether it may start
	OpLate    = "late"    // a container that was running before it was guarded; no decision
)

// Operations returns all operations, as filters take them.
func Operations() []string {
	return []string{OpOpen, OpExec, OpDirty, OpScan, OpAbsence, OpStart, OpLate}
}
