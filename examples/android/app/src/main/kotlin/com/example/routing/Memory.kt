package com.example.routing

import android.content.Context
import android.graphics.Bitmap
import android.os.Build
import java.io.FileInputStream
import java.io.FileNotFoundException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.MappedByteBuffer
import java.nio.channels.FileChannel

/** The interpreter copies direct buffers of native order in one go. */
internal fun newBuffer(bytes: Int): ByteBuffer =
    ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder())

/**
 * Maps a file of the assets: its pages are read when they are needed, and take none of the heap.
 *
 * @throws IllegalArgumentException if there is no such file.
 */
internal fun mapAsset(context: Context, name: String): MappedByteBuffer {
    val asset = try {
        context.assets.openFd(name)
    } catch (error: FileNotFoundException) {
        throw IllegalArgumentException("There is no $name in app/src/main/assets", error)
    }
    return asset.use {
        FileInputStream(it.fileDescriptor).use { stream ->
            stream.channel.map(FileChannel.MapMode.READ_ONLY, it.startOffset, it.declaredLength)
        }
    }
}

/** A canvas cannot draw a bitmap that lies in the memory of the GPU. */
internal fun inMemory(bitmap: Bitmap): Bitmap {
    val hardware = Build.VERSION.SDK_INT >= 26 && bitmap.config == Bitmap.Config.HARDWARE
    return if (hardware) bitmap.copy(Bitmap.Config.ARGB_8888, false) else bitmap
}
