package clamd

import "testing"

func TestKnowledge(t *testing.T) {
	var k knowledge
	if gen := k.now(); gen != "" {
		t.Errorf("at first: %q", gen)
	}
	early, late := k.ask(), k.ask()
	k.learn(early, "new")
	k.learn(late, "old")
	if gen := k.now(); gen != "new" {
		t.Errorf("an answer that may be the older one counts: %q", gen)
	}
	k.learn(k.ask(), "newer")
	if gen := k.now(); gen != "newer" {
		t.Errorf("an answer that is the newer one does not count: %q", gen)
	}
	k.learn(k.ask(), "")
	if gen := k.now(); gen != "" {
		t.Errorf("no longer known, yet %q", gen)
	}
}
