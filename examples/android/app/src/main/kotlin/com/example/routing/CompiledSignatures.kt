package com.example.routing

import android.content.res.AssetManager
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer
import com.google.ai.edge.litert.TensorType

/** Signatures on LiteRT's `CompiledModel`, on the CPU, the GPU or the NPU. */
class CompiledSignatures(
    assets: AssetManager,
    asset: String,
    private val file: RoutedFile,
    accelerator: Accelerator,
    threads: Int,
) : Signatures {
    private val model: CompiledModel
    private val inputBuffers = mutableMapOf<Pair<String, String>, TensorBuffer>()
    private val outputBuffers = mutableMapOf<Pair<String, String>, TensorBuffer>()

    init {
        // Kotlin's API of CompiledModel has no uint8.
        require(!file.raw) { "CompiledModel needs a file exported with --input_type=float32" }
        require(accelerator == Accelerator.CPU || file.layout == "staged") {
            "GPU and NPU need a file of the layout \"staged\". Received: layout=\"${file.layout}\""
        }
        val options = CompiledModel.Options(accelerator)
        options.cpuOptions = CompiledModel.CpuOptions(numThreads = threads)
        model = CompiledModel.create(assets, asset, options)
    }

    override fun run(signature: String, inputs: Map<String, Any>): Map<String, Any> {
        val given = inputs.mapValues { (name, value) -> asBuffer(signature, name, value) }
        val outputs = file.signatures.getValue(signature).outputs.associateWith { name ->
            outputBuffers.getOrPut(signature to name) { model.createOutputBuffer(name, signature) }
        }
        model.run(given, outputs, signature)
        return outputs.mapValues { (name, buffer) -> asArray(signature, name, buffer) }
    }

    override fun close() {
        (inputBuffers.values + outputBuffers.values).forEach { it.close() }
        model.close()
    }

    private fun asBuffer(signature: String, name: String, value: Any): TensorBuffer {
        if (value is TensorBuffer) return value
        val buffer = inputBuffers.getOrPut(signature to name) {
            model.createInputBuffer(name, signature)
        }
        when (value) {
            is FloatArray -> buffer.writeFloat(value)
            is IntArray -> buffer.writeInt(value)
            else -> error("Input $name is ${value.javaClass}")
        }
        return buffer
    }

    private fun asArray(signature: String, name: String, buffer: TensorBuffer): Any {
        if (name.startsWith("features")) return buffer
        return when (val type = model.getOutputTensorType(name, signature).elementType) {
            TensorType.ElementType.FLOAT -> buffer.readFloat()
            TensorType.ElementType.INT -> buffer.readInt()
            else -> error("Output $name has the type $type")
        }
    }
}
