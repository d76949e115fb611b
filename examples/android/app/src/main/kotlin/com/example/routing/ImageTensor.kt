package com.example.routing

/** Makes the input `image` of a file from pixels, as the metadata of the file define. */
class ImageTensor(private val file: RoutedFile) {
    private val normalised = Array(3) { c ->
        FloatArray(256) { (it * file.scale - file.mean[c]) / file.std[c] }
    }

    /**
     * Returns a `ByteArray` for a file that takes raw pixels, else a `FloatArray`.
     *
     * @param pixels ARGB, the rows of an image of the file's height and width.
     */
    fun of(pixels: IntArray): Any {
        require(pixels.size == file.height * file.width) {
            "The image must have ${file.height} x ${file.width} pixels. Received: ${pixels.size}"
        }
        val size = 3 * pixels.size
        if (file.raw) return ByteArray(size) { valueOf(pixels[it / 3], it % 3).toByte() }
        return FloatArray(size) { normalised[it % 3][valueOf(pixels[it / 3], it % 3)] }
    }
}
