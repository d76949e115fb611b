@file:Suppress("UNUSED_PARAMETER", "unused")

package com.google.ai.edge.litert

import android.content.res.AssetManager

// Declarations of LiteRT's Kotlin API, version 2.1.5, written by hand: only what the app uses.

enum class Accelerator { NONE, CPU, GPU, NPU }

abstract class JniHandle internal constructor() : AutoCloseable {
    final override fun close() = TODO()
}

data class TensorType(val elementType: ElementType) {
    enum class ElementType { INT, FLOAT, INT8, BOOLEAN, INT64 }
}

class TensorBuffer internal constructor() : JniHandle() {
    fun writeInt(data: IntArray): Unit = TODO()

    fun writeFloat(data: FloatArray): Unit = TODO()

    fun readInt(): IntArray = TODO()

    fun readFloat(): FloatArray = TODO()
}

class CompiledModel private constructor() : JniHandle() {
    data class CpuOptions(
        val numThreads: Int? = null,
        val xnnPackFlags: Int? = null,
        val xnnPackWeightCachePath: String? = null,
    )

    class Options(vararg accelerators: Accelerator) {
        var cpuOptions: CpuOptions? = null
    }

    fun createInputBuffer(inputName: String, signature: String = ""): TensorBuffer = TODO()

    fun createOutputBuffer(outputName: String, signature: String = ""): TensorBuffer = TODO()

    fun getOutputTensorType(outputName: String, signature: String = ""): TensorType = TODO()

    fun run(
        inputs: Map<String, TensorBuffer>,
        outputs: Map<String, TensorBuffer>,
        signature: String = "",
    ): Unit = TODO()

    companion object {
        fun create(
            assetManager: AssetManager,
            assetName: String,
            options: Options = Options(Accelerator.CPU),
        ): CompiledModel = TODO()
    }
}
