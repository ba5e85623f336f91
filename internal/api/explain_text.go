package api

// layerText says in a sentence what a reason of package layer means, "" if it is
// none of them.
func layerText(reason string) string {
	switch reason {
	case "pristine":
		return "The file is proven to be as the layer has it, so verdicts on it hold for every container with this layer."
	case "failed":
		return "It could not be examined which layer the file comes from, so verdicts on it hold for this container alone."
	case "changed":
		return "The file changed while it was examined; ask again."
	case "not-regular":
		return "Only regular files come from layers."
	case "other-mount":
		return "The file is on a volume or another mount, not on the root filesystem that the image made."
	case "no-handle":
		return "The kernel cannot tell which file is behind the overlay's, so nothing can be proven."
	case "no-birth-time":
		return "The filesystem of the layers keeps no birth times, so nothing can be proven."
	case "no-path":
		return "The file has no path that could be looked up in the layers, for example because it was deleted."
	case "born-in-container":
		return "The file was made in the container, or was changed in it."
	case "overlaid":
		return "The container has something of its own at this path, in place of the layer's."
	case "not-in-layers":
		return "No layer has this path."
	case "hidden":
		return "A layer further up hides the path with a removal, a link or a file."
	case "other-file":
		return "The layer has another file at this path, for example because the file was moved."
	case "copied-up":
		return "It was the layer's file, and the container has changed it or its attributes."
	case "metadata-only":
		return "The layer has only the file's attributes; its content is another layer's."
	case "in-upper":
		return "The content is in the container's upper directory."
	case "not-in-upper":
		return "The content could not be found in the container's upper directory."
	case "hard-linked":
		return "The layer's file has several names, which the container may have changed through another one."
	}
	return ""
}
