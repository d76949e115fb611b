package com.example.routing

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject

/**
 * What a routed file says about itself: the metadata that the export wrote, and its signatures.
 *
 * @property signatures the names of inputs and outputs of each signature.
 */
class RoutedFile private constructor(
    private val metadata: JSONObject,
    val signatures: Map<String, Names>,
) {
    class Names(val inputs: List<String>, val outputs: List<String>)

    private val preprocessing = metadata.getJSONObject("preprocessing")
    private val shape = ints(metadata.getJSONArray("input_shape"))
    val height = shape[0]
    val width = shape[1]

    /** Whether the file takes pixels from 0 to 255, and normalises them itself. */
    val raw = metadata.getString("input_type") == "uint8"
    val scale = preprocessing.getDouble("scale").toFloat()
    val mean = floats(preprocessing.getJSONArray("mean"))
    val std = floats(preprocessing.getJSONArray("std"))

    /** The share of an image's short side on which the network was evaluated: 1 for all of it. */
    val cropFraction =
        if (preprocessing.has("crop_fraction")) preprocessing.getDouble("crop_fraction").toFloat()
        else OLD_CROP_FRACTION
    val labels = metadata.optJSONArray("class_names")?.let { names ->
        List(names.length()) { names.getString(it) }
    }

    val layout: String = metadata.getString("layout")
    private val paths = metadata.getJSONArray("routes").let { rows ->
        List(rows.length()) { ints(rows.getJSONObject(it).getJSONArray("path")) }
    }
    val numGates = paths[0].size

    /** The widths of the file, ascending. */
    val routes = paths.flatten().distinct().sorted()

    /** "gate", "confidence" or "gate+confidence". */
    val routing: String = metadata.optString("routing", "gate")

    /** The widths that routing by confidence tries in turn; empty where only the gates route. */
    val steps = metadata.optJSONArray("steps")?.let(::ints) ?: emptyList()
    val thresholds = metadata.optJSONArray("thresholds")?.let(::floats) ?: FloatArray(0)

    private val staged: JSONObject? = metadata.optJSONObject("staged")

    /** Of a staged file: the widths among which each gate chooses; empty without gates. */
    val gateRoutes = staged?.getJSONArray("gate_routes")?.let(::ints) ?: emptyList()

    /** Of a staged file: for each gate that chooses a ratio, the ratio of each width. */
    val choiceRatios: List<FloatArray?> = staged?.getJSONArray("choice_ratios")?.let { gates ->
        List(gates.length()) { gate -> gates.optJSONArray(gate)?.let(::floats) }
    } ?: emptyList()

    /** Whether the segments are files of their own, as `split=True` writes them. */
    val split = (staged?.getJSONObject("files")?.length() ?: 0) > 0

    init {
        require(shape[2] == 3 && preprocessing.getString("channels") == "RGB") {
            "The app takes RGB images. Received: input_shape=$shape"
        }
        require(cropFraction > 0 && cropFraction <= 1) {
            "The model's crop_fraction must be above 0 and at most 1. Received: $cropFraction"
        }
    }

    companion object {
        private const val NAME = "keras_dsnet"
        private const val FORMAT = 1

        /**
         * Reads a file.
         *
         * @throws IllegalArgumentException if it is not a TFLite file with routes.
         */
        fun read(content: ByteBuffer): RoutedFile {
            val bytes = content.duplicate().order(ByteOrder.LITTLE_ENDIAN)
            require(bytes.limit() > 8 && String(ByteArray(4) { bytes.get(4 + it) }) == "TFL3") {
                "The model is not a TFLite file"
            }
            try {
                val model = Table.root(bytes)
                val text = requireNotNull(metadataOf(model)) {
                    "The model is a TFLite file without routes: make one by export_mobile.py"
                }
                val metadata = JSONObject(text)
                require(metadata.getInt("format") == FORMAT) {
                    "The model is of another version of keras_dsnet: export it again"
                }
                require(!metadata.has("outputs")) {
                    "The model is a detector; the app shows classifiers"
                }
                require(metadata.optBoolean("include_top", true)) {
                    "The model has no classifier; the app shows classes"
                }
                return RoutedFile(metadata, signaturesOf(model))
            } catch (error: JSONException) {
                throw IllegalArgumentException("The model is damaged: ${error.message}", error)
            } catch (error: IndexOutOfBoundsException) {
                throw IllegalArgumentException("The model is damaged: it ends too early", error)
            }
        }

        private fun metadataOf(model: Table): String? {
            val entry = model.tables(METADATA).firstOrNull { it.string(ENTRY_NAME) == NAME }
            return entry?.let { model.tables(BUFFERS)[it.int(ENTRY_BUFFER)].string(BUFFER_DATA) }
        }

        private fun signaturesOf(model: Table) =
            model.tables(SIGNATURES).associate { signature ->
                val (inputs, outputs) = listOf(SIGNATURE_INPUTS, SIGNATURE_OUTPUTS).map { slot ->
                    signature.tables(slot).map { it.string(TENSOR_NAME) }
                }
                signature.string(SIGNATURE_KEY) to Names(inputs, outputs)
            }
    }
}

private fun ints(array: JSONArray) = List(array.length()) { array.getInt(it) }

private fun floats(array: JSONArray) =
    FloatArray(array.length()) { array.getDouble(it).toFloat() }

// That of the recipes' evaluation, for files of versions that wrote none.
private const val OLD_CROP_FRACTION = 0.875f

// Positions of fields in the tables of TFLite's schema.fbs.
private const val BUFFERS = 4
private const val METADATA = 6
private const val SIGNATURES = 7
private const val BUFFER_DATA = 0
private const val ENTRY_NAME = 0
private const val ENTRY_BUFFER = 1
private const val SIGNATURE_INPUTS = 0
private const val SIGNATURE_OUTPUTS = 1
private const val SIGNATURE_KEY = 2
private const val TENSOR_NAME = 0

/** A table of a FlatBuffer. LiteRT's Kotlin API returns neither metadata nor names. */
private class Table(private val bytes: ByteBuffer, private val start: Int) {
    fun int(slot: Int): Int = position(slot)?.let(bytes::getInt) ?: 0

    fun string(slot: Int): String {
        val vector = vector(slot) ?: return ""
        return String(ByteArray(bytes.getInt(vector)) { bytes.get(vector + 4 + it) })
    }

    fun tables(slot: Int): List<Table> {
        val vector = vector(slot) ?: return emptyList()
        return List(bytes.getInt(vector)) { at(bytes, vector + 4 + 4 * it) }
    }

    private fun vector(slot: Int) = position(slot)?.let { it + bytes.getInt(it) }

    private fun position(slot: Int): Int? {
        val fields = start - bytes.getInt(start)
        val entry = 4 + 2 * slot
        if (entry >= bytes.getShort(fields)) return null
        val offset = bytes.getShort(fields + entry).toInt()
        return if (offset == 0) null else start + offset
    }

    companion object {
        fun root(bytes: ByteBuffer) = at(bytes, 0)

        private fun at(bytes: ByteBuffer, position: Int) =
            Table(bytes, position + bytes.getInt(position))
    }
}
