package install

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A File is one that was written or removed, or with DryRun would be.
type File struct {
	Path    string
	Content []byte // nil: it is removed
	Changed bool   // false: it is as wanted already
	mode    fs.FileMode
	own     func([]byte) bool
}

// compare marks the files whose content is to change, and refuses those of others.
func compare(files []File) ([]File, error) {
	for i := range files {
		old, err := readOwn(files[i].Path, files[i].own)
		if err != nil {
			return nil, err
		}
		files[i].Changed = old != nil && files[i].Content == nil || files[i].Content != nil && !bytes.Equal(old, files[i].Content)
	}
	return files, nil
}

// applyFiles writes and removes what has changed, in order.
func applyFiles(files []File) error {
	for _, f := range files {
		if !f.Changed {
			continue
		}
		dir := filepath.Dir(f.Path)
		if f.Content == nil {
			if err := os.Remove(f.Path); err != nil {
				return fmt.Errorf("remove an earlier installation: %w", err)
			}
			if err := syncDir(dir); err != nil {
				return err
			}
			continue
		}
		if err := makeDir(dir); err != nil {
			return err
		}
		if err := replaceFile(f.Path, f.Content, f.mode); err != nil {
			return err
		}
	}
	return nil
}
