package com.example.routing

import android.Manifest
import android.content.pm.PackageManager
import android.graphics.Bitmap
import android.net.Uri
import android.os.Bundle
import android.util.Log
import androidx.activity.ComponentActivity
import androidx.activity.result.PickVisualMediaRequest
import androidx.activity.result.contract.ActivityResultContracts
import androidx.core.content.ContextCompat
import java.util.concurrent.Executors
import java.util.concurrent.atomic.AtomicBoolean

/** Routes camera frames or a picked photograph, with the engine and the limits that are set. */
class MainActivity : ComponentActivity() {
    private lateinit var screen: Screen
    private lateinit var feed: CameraFeed

    // One thread opens, runs and closes the model: an interpreter serves one image at a time.
    private val executor = Executors.newSingleThreadExecutor()
    private var model: OpenedModel? = null

    // Run again when an engine or a slider changes; null while the camera runs.
    private var photograph: Bitmap? = null

    // Counts what the user asks for: the camera may have started before a photograph is read.
    @Volatile
    private var request = 0

    // A slider moves faster than the model runs; one run with its last position is enough.
    private val isQueued = AtomicBoolean()

    private val pick = registerForActivityResult(ActivityResultContracts.PickVisualMedia()) { uri ->
        if (uri != null) open(uri)
    }
    private val permission =
        registerForActivityResult(ActivityResultContracts.RequestPermission()) { granted ->
            if (granted) startCamera() else screen.showMessage("The app may not use the camera")
        }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        screen = Screen(this)
        setContentView(screen.root)
        feed = CameraFeed(this, screen.camera, executor, ::classify) { error ->
            screen.showMessage("The camera does not start: ${error.message}")
        }
        screen.cameraButton.setOnClickListener { askForCamera() }
        screen.photoButton.setOnClickListener {
            pick.launch(PickVisualMediaRequest(ActivityResultContracts.PickVisualMedia.ImageOnly))
        }
        screen.onSliders(::runAgain)
        screen.onEngine(::open)
    }

    override fun onStart() {
        super.onStart()
        feed.followTurns(true)
    }

    override fun onStop() {
        feed.followTurns(false)
        super.onStop()
    }

    override fun onDestroy() {
        feed.stop()
        executor.execute { model?.close() }
        executor.shutdown()
        super.onDestroy()
    }

    private fun open(engine: Engine) = inBackground("The model does not open") {
        model?.close()
        model = null
        val opened = OpenedModel(this, engine)
        model = opened
        runOnUiThread { screen.showFile(opened.file) }
        photograph?.let(::classify)
    }

    private fun open(uri: Uri) {
        feed.stop()
        request += 1
        val mine = request
        inBackground("The photograph does not open") {
            val bitmap = decodePhotograph(contentResolver, uri)
            if (mine == request) {
                photograph = bitmap
                runOnUiThread { if (mine == request) screen.showPhotograph(bitmap) }
                classify(bitmap)
            }
        }
    }

    private fun runAgain() {
        if (isQueued.getAndSet(true)) return
        inBackground("The model does not run") {
            isQueued.set(false)
            photograph?.let(::classify)
        }
    }

    private fun askForCamera() {
        val state = ContextCompat.checkSelfPermission(this, Manifest.permission.CAMERA)
        if (state == PackageManager.PERMISSION_GRANTED) startCamera()
        else permission.launch(Manifest.permission.CAMERA)
    }

    private fun startCamera() {
        request += 1
        screen.showsCamera(true)
        executor.execute { photograph = null }
        feed.start()
    }

    /** Runs an image on the thread of the executor, which calls this. */
    private fun classify(bitmap: Bitmap) {
        val opened = model ?: return
        try {
            val timed = opened.classify(bitmap, screen.maxWidth, screen.threshold)
            runOnUiThread { screen.showResult(opened.file, timed) }
        } catch (error: Exception) {
            show("The model does not run", error)
        }
    }

    private fun inBackground(failure: String, work: () -> Unit) = executor.execute {
        try {
            work()
        } catch (error: Exception) {
            show(failure, error)
        }
    }

    private fun show(failure: String, error: Exception) {
        Log.e("routing", failure, error)
        runOnUiThread { screen.showMessage("$failure: ${error.message}") }
    }
}
