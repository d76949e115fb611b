package com.example.routing

import android.content.ContentResolver
import android.graphics.Bitmap
import android.graphics.ImageDecoder
import android.net.Uri
import kotlin.math.max

// Larger photographs are decoded smaller: the networks take images of a few hundred pixels.
private const val LARGEST_SIDE = 1024

/**
 * Decodes a picked photograph, upright as its EXIF data say.
 *
 * @throws java.io.IOException if it cannot be decoded.
 */
fun decodePhotograph(resolver: ContentResolver, uri: Uri): Bitmap =
    ImageDecoder.decodeBitmap(ImageDecoder.createSource(resolver, uri)) { decoder, info, _ ->
        // A canvas cannot draw a bitmap that lies in the memory of the GPU.
        decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE
        val side = max(info.size.width, info.size.height)
        if (side > LARGEST_SIDE) decoder.setTargetSampleSize(side / LARGEST_SIDE)
    }
