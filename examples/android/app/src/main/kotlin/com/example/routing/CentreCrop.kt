package com.example.routing

import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Matrix
import android.graphics.Paint
import kotlin.math.max

/**
 * Cuts the centre out of a bitmap and resizes it.
 *
 * @param fraction the share of the image's short side that the network sees, as
 *   `RoutedFile.cropFraction` has it.
 */
class CentreCrop(
    private val width: Int,
    private val height: Int,
    private val fraction: Float,
) {
    private val centre = Bitmap.createBitmap(width, height, Bitmap.Config.ARGB_8888)
    private val canvas = Canvas(centre)
    private val paint = Paint(Paint.FILTER_BITMAP_FLAG)
    private val matrix = Matrix()
    private val pixels = IntArray(width * height)

    /** Returns the ARGB pixels of the centre. The next call overwrites them. */
    fun pixelsOf(bitmap: Bitmap): IntArray {
        var source = inMemory(bitmap)
        // A bilinear filter reads four pixels; shrinking by more than two would skip some.
        while (scaleOf(source) <= 0.5f) {
            val half = Bitmap.createScaledBitmap(source, source.width / 2, source.height / 2, true)
            if (source !== bitmap) source.recycle()
            source = half
        }
        // A bitmap of the right size is taken whole, as in the evaluation.
        val fits = bitmap.width == width && bitmap.height == height
        val scale = if (fits) 1f else scaleOf(source)
        matrix.setScale(scale, scale)
        matrix.postTranslate(
            (width - scale * source.width) / 2,
            (height - scale * source.height) / 2,
        )
        canvas.drawColor(Color.BLACK)
        canvas.drawBitmap(source, matrix, paint)
        if (source !== bitmap) source.recycle()
        centre.getPixels(pixels, 0, width, 0, 0, width, height)
        return pixels
    }

    private fun scaleOf(source: Bitmap): Float =
        max(width / (fraction * source.width), height / (fraction * source.height))
}
